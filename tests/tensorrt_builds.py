"""Builds exported networks with TensorRT for RTX, which needs no GPU, and prints what came out as a Markdown table.

    python tests/tensorrt_builds.py                           # all there are, in f32 and f16, for all targets
    python tests/tensorrt_builds.py gesture base --targets SM89 --precisions f16

What is built: models and architectures as `gatestream export` takes them, `clip:NAME` for the bidirectional form of an
architecture, which takes whole clips, and `fusion:FORM` for a clip fusion of random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import engines
from engines.bench.overhead import is_architecture, random_model, with_fusion
from engines.errors import EngineError, GatestreamError
from engines.model.file import Model
from engines.networks.network import BACKBONES, MODULES
from engines.runtime import onnx_forms

TARGETS = ("SM75", "SM89", "SM120")  # the oldest that it knows, one between, the newest
PRECISIONS = ("f32", "f16")
STEPS = (*(f"{module}-{backbone}" for backbone in ("mobilenetv2", "resnet18", "resnet50", "bninception", "inceptionv3")
           for module in MODULES), "gesture")
OTHERS = ("base", "clip:gsf-resnet50", "clip:gsm-bninception", "fusion:attention", "fusion:bigru")
assert set(BACKBONES) == {step.partition("-")[2] for step in STEPS if "-" in step}


def write(name: str, precision: str, out: Path, batch: int = 1) -> None:
    """An ONNX file as `gatestream export` writes it, without running it."""
    kind, _, rest = name.rpartition(":")
    if kind == "clip":
        form = onnx_forms.clip_form(bidirectional_model(rest), batch)
    elif kind == "fusion":
        form = onnx_forms.fusion_form(with_fusion(random_model("tsn-mobilenetv2"), rest), batch)
    else:
        form = onnx_forms.step_form(random_model(name) if is_architecture(name) else engines.load(name), batch)
    onnx_forms.convert(form, precision, name).save(out, external_data=False)


def bidirectional_model(architecture: str) -> Model:
    """With random weights."""
    contract = random_model(architecture).contract
    network = engines.build(architecture, heads={"action": 174}, causal=False).eval()
    model = Model(contract.model_copy(update={"network": network.config}), {}, f"sample of {architecture}")
    model.network = network
    return model


def build(file: Path, target: str) -> int:
    """Bytes of the engine that an ONNX file becomes for a target, such as SM89. Raises EngineError with what the
    parser or the compiler says against it."""
    import tensorrt_rtx as trt

    said: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # as its binding asks for

        def log(self, severity: object, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                said.append(text)

    check_targets([target])
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    built = None
    if parser.parse(file.read_bytes()):
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[target], 0)
        built = builder.build_serialized_network(network, config)
    if built is None:
        compiler = f"TensorRT for RTX {trt.__version__}"
        raise EngineError(f"{file.name}, refused by {compiler} for {target} ({' '.join(said[0].split())})",
                          "a graph that it builds", "export it again")
    return int(built.nbytes)


def check_targets(targets: Sequence[str]) -> None:
    """Raises EngineError for one that the compiler does not know."""
    import tensorrt_rtx as trt

    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    for target in targets:
        if target not in known:
            raise EngineError(f"target {target!r}", f"one of {', '.join(known)}", "choose one that the compiler knows")


def rows(names: Sequence[str], targets: Sequence[str], precisions: Sequence[str]) -> Iterator[list[str]]:
    """Of each name and precision: sizes in MB and seconds, or why not."""
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            for name in names:
                file = Path(folder) / "step.onnx"
                began = time.perf_counter()
                write(name, precision, file)
                cells = [name, precision, f"{file.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s"]
                for target in targets:
                    began = time.perf_counter()
                    try:
                        size = build(file, target)
                    except EngineError as error:
                        cells.append(error.got)
                    else:
                        cells.append(f"{size / 1e6:.1f} MB, {time.perf_counter() - began:.1f} s")
                yield cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*STEPS, *OTHERS], metavar="NAME")
    parser.add_argument("--targets", default=",".join(TARGETS), help="default: %(default)s")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="default: %(default)s")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    targets = chosen.targets.split(",")
    try:
        check_targets(targets)
        for head in (["network", "precision", "ONNX", *targets], ["---"] * (3 + len(targets))):
            print(f"| {' | '.join(head)} |")
        for row in rows(chosen.names, targets, chosen.precisions.split(",")):
            print(f"| {' | '.join(row)} |", flush=True)
    except GatestreamError as error:
        sys.exit(str(error))
