"""A network's step beside its bare backbone: the same network without temporal modules (tsn), in the same engine.
Both are timed in turns, so that whatever else the machine does hits both. Figures are milliseconds. What stands for
the others is the median, but the mean for a bidirectional model, few of whose steps do all the work."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from engines.errors import UsageError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.preprocess import fit
from engines.networks.config import FusionRule, NetworkConfig, tensor_shapes
from engines.runtime.backend import Spec
from engines.runtime.engine import Engine
from engines.runtime.registry import ENGINES, find, unavailable_reason
from engines.synthetic import Simulation

Figures = dict[str, float]
Floats = NDArray[np.float64]

CAMERA_HW = (480, 640)
TURN = 20  # steps of one network before the other has its turn
SAMPLE_HEAD = {"action": 174}  # labels of a sampled model, as many as Something-Something has
SAMPLE_RATE = 8.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a network's step costs beside its bare backbone."""

    network: str
    engine: str
    precision: str
    size_hw: tuple[int, int]
    state_bytes: int  # per camera
    typical: str  # which figure stands for the others, a key of step_ms and bare_ms
    step_ms: Figures
    bare_ms: Figures
    ratio: float  # step / bare, the median over turns


def is_architecture(name: str) -> bool:
    """Whether `random_model` knows it, and no file of that name is meant."""
    config = NetworkConfig.of(name)
    if not config.backbone or Path(name).exists():
        return False
    from engines.networks.network import BACKBONES, MODULES

    return config.module in MODULES and config.backbone in BACKBONES


def random_model(architecture: str, input_size_hw: tuple[int, int] | None = None) -> Model:
    """A causal model of an architecture with random weights, always the same, at the size it was published for.
    Weights keep the size of signals from layer to layer, and batch norms have the statistics of a short clip, so that
    nothing overflows, fades out or stands still while it is timed. It has no file."""
    import torch
    from torch import nn

    from engines.networks.network import build

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(architecture, heads=SAMPLE_HEAD, causal=True, input_size_hw=input_size_hw, dropout=0.0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics are those of the one clip below
        network.train()(torch.randn(2, 3, 3, *network.input_size_hw), network.fresh_state(2))
    contract = Contract(
        name=architecture, network=network.config, frame_rate=SAMPLE_RATE,
        heads={head: tuple(map(str, range(labels))) for head, labels in SAMPLE_HEAD.items()},
        cover_hw=network.input_size_hw, receptive_frames=1, warmup_frames=0, clip_frames=8, window_clips=4)
    tensors = {key: value.numpy() for key, value in network.state_dict().items()
               if not key.endswith("num_batches_tracked")}
    return Model(contract, tensors, digest=f"sample of {architecture}")


def with_fusion(model: Model, form: str) -> Model:
    """The same model with a clip fusion of random weights. Raises UsageError for a form that `FusionRule` lacks."""
    try:
        rule = FusionRule.model_validate({"relate": form})
    except ValidationError:
        raise UsageError(f"clip fusion {form!r}", "attention, bigru or none", "choose one of these") from None
    width = model.tensors[f"heads.{next(iter(model.contract.heads))}.weight"].shape[1]
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
               for name, shape in tensor_shapes(rule, width).items()}
    fused = Model(model.contract.model_copy(update={"fusion": rule}), model.tensors | tensors, model.digest, model.path)
    fused.network = model.network
    return fused


def resolve_engine(engine: str) -> str:
    """The name of an engine that networks without a file can be timed in. auto: the best there is."""
    if engine == "auto":
        return next(name for name in ENGINES if unavailable_reason(name) is None)
    if engine not in (*ENGINES, "onnx"):
        raise UsageError(f"engine {engine!r} to time an architecture or several models in",
                         f"auto, {', '.join(ENGINES)} or onnx", "choose one of these")
    return engine


def measure_overhead(model: Model, engine: str = "auto", precision: str = "f32",
                     size_hw: tuple[int, int] | None = None, steps: int = 400,
                     opened: Engine | None = None) -> Overhead:
    """Times a model, at its own size unless another is given, and its bare backbone.
    steps: timed frames of each, rounded up to whole turns; opened: its engine, where there is one at this size, which
    is not built again and stays open. Raises what building the engine raises."""
    engine = resolve_engine(engine)
    size_hw = size_hw or model.contract.input_size_hw
    config = model.contract.network.replace(input_size_hw=size_hw)
    resized = Model(model.contract.model_copy(update={"network": config, "cover_hw": size_hw}), model.tensors, "")
    backend, bare_model = find(engine), bare_backbone(resized)
    engines = {"step": opened or backend.open_unproven(Spec(resized, precision=precision)),
               "bare": backend.open_unproven(Spec(bare_model, precision=precision))}
    frames = [fit(image, size_hw, size_hw)[None] for image in camera_images(model.contract.frame_rate, TURN)]
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(2 + -(-steps // TURN)):
        for name, built in engines.items():
            for frame in frames:
                began = time.perf_counter()
                built.step(frame, [0])
                taken[name].append(time.perf_counter() - began)
    state_bytes = engines["step"].state_bytes
    for built in engines.values():
        if built is not opened:
            built.close()
    average = np.mean if typical(model) == "mean" else np.median
    # Turn by turn: both networks ran within milliseconds, whatever the machine did before and after. Two only warm up.
    step, bare = (np.reshape(taken[name], (-1, TURN))[2:] for name in ("step", "bare"))
    return Overhead(model.contract.name, engine, precision, size_hw, state_bytes, typical(model), percentiles(step),
                    percentiles(bare), float(np.median(average(step, axis=1) / average(bare, axis=1))))


def format_table(rows: Sequence[Overhead]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [("network", "input", "engine", "state per camera", "step p50", "bare p50", "step / bare")]
    cells += [(row.network, "{1}x{0}".format(*row.size_hw), f"{row.engine} {row.precision}",
               f"{row.state_bytes / 1000:.0f} kB", f"{row.step_ms[row.typical]:.2f} ms",
               f"{row.bare_ms[row.typical]:.2f} ms", f"{row.ratio:.2f}") for row in rows]
    columns = ([cell.ljust(max(map(len, column))) for cell in column] for column in zip(*cells, strict=True))
    out = [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)]
    return [out[0], "|" + " --- |" * len(cells[0]), *out[1:]]


def percentiles(seconds: Sequence[float] | Floats) -> Figures:
    """p50, p95, p99 and mean in milliseconds."""
    return {**{f"p{q}": float(np.percentile(seconds, q)) * 1000 for q in (50, 95, 99)},
            "mean": float(np.mean(seconds)) * 1000}


def typical(model: Model) -> str:
    """Which figure stands for the others."""
    return "p50" if model.contract.network.causal else "mean"


def camera_images(rate: float, count: int = 60) -> list[NDArray[np.uint8]]:
    """Frames of the simulated camera, BGR [480, 640, 3]."""
    camera = Simulation(0, size_hw=CAMERA_HW, rate=rate, idle_s=(0.2, 0.6))
    return [camera.frame(k) for k in range(count)]


def bare_backbone(model: Model) -> Model:
    """The model's backbone with heads and without anything temporal."""
    from engines.networks.network import build

    contract = model.contract
    config = NetworkConfig(module="tsn", backbone=contract.network.backbone, causal=True,
                           input_size_hw=contract.input_size_hw)
    network = build(config, heads={head: len(labels) for head, labels in contract.heads.items()})
    weights = model.network.backbone.state_dict()
    network.backbone.load_state_dict({name: weights[name] for name in network.backbone.state_dict()})
    bare = Model(contract.model_copy(update={"network": config}), {}, digest="")
    bare.network = network.eval()
    return bare
