"""The OpenVINO engine: one stateful infer request per camera, batch 1, camera pixels in. Runs without torch.

    engine = open_engine(model, slots=4, precision=None)     # from the cache, or built (seconds) and kept there

Building: the network's step (lowering.py) is traced into an OpenVINO graph, its state becomes variables of the
request, and layout, colour order and normalisation move into the graph. Precision: bf16 where the processor has it
and its calibrated scores agree with eager's on the probe clip, else f32; what was measured is kept with the entry.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engines import cache
from engines.agreement import TOLERANCE, difference, probe_clip, run_clip
from engines.contract import Contract
from engines.engine import Engine, Floats, StepResult
from engines.errors import EngineError

if TYPE_CHECKING:
    from engines.model import Model
    from engines.networks.network import Network

log = logging.getLogger("gatestream.engines")

CODE_VERSION = "6"  # raise when lowering or conversion change: entries of other versions are then not found
PRECISIONS = {"f32": "f32", "bf16": "bf16"}
DEVICE = "CPU"
GRAPH = "step.xml"
# With less work than this per thread (a MobileNetV2 frame at 224x224 is 0.3e9), sharing a frame between threads saves
# little, costs much on a busy machine, and takes cores from decoding.
MULTIPLICATIONS_PER_THREAD = 0.5e9


class OpenVINOEngine(Engine):
    """Slots cost nothing until used. Cameras of one step run side by side."""

    name = "openvino"

    def __init__(self, contract: Contract, compiled: ov.CompiledModel, slots: int, precision: str) -> None:
        self.contract, self.slots, self.precision = contract, slots, precision
        self._compiled: ov.CompiledModel | None = compiled
        self._requests: dict[int, _Request] = {}

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        try:
            requests = [self._request(slot) for slot in slots]
            for request, frame in zip(requests, frames_u8_BHWC, strict=True):
                request.pixels[0] = frame
                request.run.start_async()
            for request in requests:
                request.run.wait()
            return StepResult(self._rows(requests, "features"),
                              {head: self._rows(requests, f"scores.{head}") for head in self.contract.heads})
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failing while it ran ({_first_line(error)})", "a step without a fault",
                              "run `gatestream doctor`, or use --engine eager") from error

    def _request(self, slot: int) -> _Request:
        if self._compiled is None:
            raise EngineError("a step of an engine that is closed", "an open engine", "compile a new one")
        if slot not in self._requests:
            self._requests[slot] = _Request(self._compiled, ["features", *(f"scores.{h}" for h in self.contract.heads)])
        return self._requests[slot]

    def _rows(self, requests: Sequence[_Request], output: str) -> Floats:
        if requests:
            return np.concatenate([request.outputs[output].data for request in requests])
        assert self._compiled is not None
        return np.zeros((0, self._compiled.output(output).shape[1]), np.float32)

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self._requests:
                self._requests[slot].run.reset_state()

    @property
    def state_bytes(self) -> int:
        return sum(variable.state.byte_size for variable in self._request(0).run.query_state())

    def close(self) -> None:
        self._requests.clear()
        self._compiled = None


class _Request:
    """The infer request of one camera, which holds its state, with the memory it reads and writes."""

    def __init__(self, compiled: ov.CompiledModel, outputs: Sequence[str]) -> None:
        self.run = compiled.create_infer_request()
        self.pixels = np.zeros(tuple(compiled.input("image").shape), np.uint8)
        self.run.set_tensor("image", ov.Tensor(self.pixels, shared_memory=True))
        self.outputs = {name: self.run.get_tensor(name) for name in outputs}
        self.run.reset_state()


@functools.cache
def core() -> ov.Core:
    """The process's one OpenVINO core, never destroyed. OpenVINO 2026.4 gives the thread a signal stack of its own with
    each core and puts the one before back in the end: with several cores that one may be freed by then, and the next
    signal (Ctrl-C, say) would crash the process."""
    return ov.Core()


def key_of(model: Model, precision: str | None) -> dict[str, str]:
    """Everything a built engine of this model depends on."""
    return {"model": model.digest, "engine": "openvino", "code": CODE_VERSION, "library": ov.get_version(),
            "device": str(core().get_property(DEVICE, "FULL_DEVICE_NAME")), "precision": precision or "by agreement"}


def open_engine(model: Model, slots: int = 1, precision: str | None = None, file: Path | None = None) -> OpenVINOEngine:
    """The OpenVINO engine of a model: from a file of `export`, from the cache, or built.

    precision: f32, bf16, or None to choose by measured agreement. Raises EngineError.
    """
    if precision not in (None, *PRECISIONS):
        raise EngineError(f"precision {precision!r}", f"one of {', '.join(PRECISIONS)}",
                          "leave it out to have it chosen")
    if precision == "bf16" and not has_bf16():
        raise EngineError("precision bf16", "a processor that has it", "use f32 on this machine")
    entry = cache.unpack(file, key_of(model, precision)) if file else obtain(model, precision)
    try:
        chosen = str(entry.facts["precision"])
        graph = core().read_model(entry.folder / GRAPH)
        return OpenVINOEngine(model.contract, compile_graph(graph, slots, chosen), slots, chosen)
    except (RuntimeError, KeyError) as error:
        raise EngineError(f"OpenVINO refusing a built engine ({_first_line(error)})", "a graph it can load",
                          f"delete {entry.folder}, or use --engine eager") from error


def obtain(model: Model, precision: str | None) -> cache.Entry:
    """The cache entry of a model's OpenVINO engine, built if need be."""
    def build(folder: Path) -> cache.Facts:
        log.warning("building the OpenVINO engine of %s for this machine, once", model.contract.name)
        began = time.perf_counter()
        with one_thread():
            facts = build_into(folder, model, precision)
        log.warning("built in %.1f s: %s", time.perf_counter() - began, facts["precision"])
        return facts

    return cache.obtain(key_of(model, precision), build)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: its threads wait for one another at every layer, for minutes where others keep the cores
    busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_into(folder: Path, model: Model, precision: str | None) -> cache.Facts:
    """Writes the graph and returns {precision, agreement: {precision: difference from eager}}."""
    from engines.eager import EagerEngine

    frames = probe_clip(model.contract)
    wanted = run_clip(EagerEngine(model.network, model.contract, 1), frames)
    graph = convert(model.network, model.contract)
    asked = [precision] if precision else ["f32", "bf16"] if has_bf16() else ["f32"]
    agreement = {}
    for name in asked:
        engine = OpenVINOEngine(model.contract, compile_graph(graph, 1, name), 1, name)
        agreement[name] = difference(model.contract, wanted, run_clip(engine, frames))
    fit = [name for name in asked if agreement[name] <= TOLERANCE]
    if not fit:
        raise EngineError(f"OpenVINO scores that are off by {agreement} from eager", f"{TOLERANCE} at most",
                          "use --engine eager, and report this with the output of `gatestream doctor`")
    try:
        ov.save_model(graph, folder / GRAPH, compress_to_fp16=False)
    except RuntimeError as error:
        raise EngineError(f"a built engine that cannot be written ({_first_line(error)})", f"space in {folder}",
                          "free some space, or set GATESTREAM_CACHE to another folder") from error
    return {"precision": fit[-1], "agreement": agreement}


def convert(network: Network, contract: Contract) -> ov.Model:
    """A causal network as a stateful graph: `image` uint8 BGR [1, H, W, 3] in, `features` and `scores.<head>` out."""
    import torch
    from openvino.passes import MakeStateful, Manager

    from engines.lowering import StepNetwork

    step = StepNetwork(network, reversed_colours=contract.colour == "RGB")
    state = step.fresh_state()
    image = torch.zeros(1, 3, *contract.input_size_hw)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter traces with what torch calls deprecated
            graph = ov.convert_model(step, example_input=(image, *state))
        graph.reshape({port: list(tensor.shape) for port, tensor in zip(graph.inputs, (image, *state), strict=True)})
        for i, port in enumerate(graph.inputs):
            port.get_tensor().set_names({f"state.{i - 1}.in" if i else "image"})
        results = ["features", *(f"scores.{head}" for head in contract.heads)]
        results += [f"state.{i}.out" for i in range(len(state))]
        for name, port in zip(results, graph.outputs, strict=True):
            port.get_tensor().set_names({name})
        if state:
            manager = Manager()
            manager.register_pass(MakeStateful({f"state.{i}.in": f"state.{i}.out" for i in range(len(state))}))
            manager.run_passes(graph)
        return _with_pixels(graph, contract)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO failing to convert {contract.architecture} ({_first_line(error)})",
                          "a network it can convert", "use --engine eager") from error


def _with_pixels(graph: ov.Model, contract: Contract) -> ov.Model:
    """Moves layout and normalisation into the graph. Pixels stay BGR: the stem's weights are reversed instead, because
    OpenVINO 2026.4's own fusion of a channel reversal (RIC) gives wrong results in graphs with sliced channels."""
    from openvino import preprocess

    mean, std = (values[::-1] if contract.colour == "RGB" else values for values in (contract.mean, contract.std))
    steps = preprocess.PrePostProcessor(graph)
    image = steps.input("image")
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    chain = image.preprocess().convert_element_type(ov.Type.f32)
    chain.mean([value / contract.value_scale for value in mean])
    chain.scale([value / contract.value_scale for value in std])
    return steps.build()


def compile_graph(graph: ov.Model, slots: int, precision: str) -> ov.CompiledModel:
    """Compiles for few cameras at low latency: cameras run side by side, a heavy frame is shared between threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = min(slots, cores)
    threads = min(cores, streams * max(1, round(_multiplications(graph) / MULTIPLICATIONS_PER_THREAD)))
    return core().compile_model(graph, DEVICE, {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision]})


def _multiplications(graph: ov.Model) -> float:
    """Multiplications of one frame's convolutions, which are nearly all of its work."""
    skipped = {"Convolution": 1, "GroupConvolution": 2}  # axes of the weights that count outputs
    total = 0.0
    for node in graph.get_ops():
        if node.get_type_name() in skipped:
            weights = node.input_value(1).shape[skipped[node.get_type_name()]:]
            total += float(np.prod(node.output(0).shape)) * float(np.prod(weights))
    return total


def has_bf16() -> bool:
    return "BF16" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
