"""The OpenVINO engine: a pool of slots around infer requests with camera pixels in. Runs without torch.
The network's step (lowering.py) becomes a graph with state in and out, layout, colour order and normalisation
included. A small network's weights take longer to come from memory than to be multiplied with one frame, so cameras
share them where each gets then, bit for bit, what it would get alone."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, engine_error, raise_interrupt
from engines.model.contract import Contract
from engines.model.file import Model
from engines.runtime.backend import Backend, Facts, Spec
from engines.runtime.engine import Engine, Floats, StepResult
from engines.runtime.parity import probe_clip

_TELEMETRY = "openvino_telemetry"  # it would report what is imported and converted, from every camera's machine
_before = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino as ov
except ImportError as error:
    raise_interrupt(error)
    raise EngineError(f"no usable OpenVINO ({error})", "the openvino package", "pip install openvino") from error
finally:
    del sys.modules[_TELEMETRY]
    if _before is not None:
        sys.modules[_TELEMETRY] = _before

DEVICE = "CPU"
GRAPH = "step.xml"
# With less work than this per thread (a MobileNetV2 frame at 224x224 is 0.3e9), sharing a frame between threads saves
# little, costs much on a busy machine, and takes cores from decoding.
MULTIPLICATIONS_PER_THREAD = 0.5e9
BATCHES = (2, 4)  # cameras at a time, beside one; eight cost as much a frame as four, and take longer
BATCH_FRAMES = 16  # that are compared of each of a batch's cameras


def last_line(error: BaseException) -> str:
    """Where OpenVINO says what is wrong, behind the places in its source."""
    return next((line.strip() for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)


openvino_error = functools.partial(engine_error, line=last_line)


class OpenVINOEngine(Engine):
    """Slots cost no more than their state. Cameras of one step run side by side."""

    name = "openvino"

    def __init__(self, contract: Contract, compiled: Mapping[int, ov.CompiledModel], slots: int,
                 precision: str) -> None:
        """compiled: the step of so many cameras at a time, of one among them."""
        self.contract, self.slots, self.precision = contract, slots, precision
        self._compiled = {batch: compiled[batch] for batch in sorted(compiled, reverse=True)}
        self._streams = int(compiled[1].get_property("NUM_STREAMS"))
        self._idle: dict[int, list[_Request]] = {batch: [] for batch in compiled}
        self._widths = [port.shape[1] for port in compiled[1].outputs[:1 + len(contract.heads)]]
        # Two rows of state a camera, the one it has and the one it gets; no pool for a network without state.
        self._pools = [_Pool(slots, port.shape[1]) for port in compiled[1].inputs[1:]]

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        if not self._compiled:
            raise EngineError("a step of an engine that is closed", "an open engine", "compile a new one")
        results = [np.empty((len(slots), width), np.float32) for width in self._widths]
        running: list[tuple[slice, _Request, int]] = []
        try:
            for start, batch in self._batches(len(slots)):
                here = slice(start, start + batch)
                request = self._idle[batch].pop() if self._idle[batch] else _Request(self._compiled[batch])
                running.append((here, request, batch))
                request.start(frames_u8_BHWC[here], self._pools, slots[here])
            for _, request, _ in running:
                request.wait()
        except RuntimeError as error:
            for _, request, _ in running:  # the memory that they write is not to be used before they end
                with contextlib.suppress(RuntimeError):
                    request.wait()
            raise EngineError(f"OpenVINO failing while it ran ({last_line(error)})", "a step without a fault",
                              "run `gatestream doctor`, or use --engine eager") from error
        for here, request, batch in running:  # when all have run: a step that fails moves no camera
            for result, output in zip(results, request.store(self._pools, slots[here]), strict=False):
                result[here] = output
            self._idle[batch].append(request)
        features, *scores = results
        return StepResult(features, dict(zip(self.contract.heads, scores, strict=True)))

    def _batches(self, cameras: int) -> Iterator[tuple[int, int]]:
        """(first, how many) of each run that these cameras are served by: large ones, but no core idle for them."""
        share, start = -(-cameras // self._streams), 0
        while start < cameras:
            batch = next(batch for batch in self._compiled if batch <= min(share, cameras - start))
            yield start, batch
            start += batch

    def _reset(self, slots: Sequence[int]) -> None:
        for pool in self._pools:
            pool.states[pool.rows[list(slots)]] = 0

    @property
    def state_bytes(self) -> int:
        return sum(pool.states[0].nbytes for pool in self._pools)

    def close(self) -> None:
        self._compiled, self._idle, self._pools = {}, {}, []


class _Pool:
    """States of cameras, two rows each: in `rows[slot]` it is what it has, a step writes the other one."""

    def __init__(self, slots: int, floats: int) -> None:
        self.states, self.rows = np.zeros((2 * slots, floats), np.float32), np.arange(slots)
        self._tensors: dict[int, ov.Tensor] = {}

    def tensor(self, row: int) -> ov.Tensor:
        """One row, as a graph for one camera takes it."""
        if row not in self._tensors:
            self._tensors[row] = ov.Tensor(self.states[row:row + 1], shared_memory=True)
        return self._tensors[row]

    def other(self, slot: int) -> int:
        """The row that a camera does not have."""
        return int(self.rows[slot] + len(self.rows)) % len(self.states)


class _Request:
    """An infer request for some cameras at a time, with the memory it reads. That of one camera works on its state in
    place, as large networks have much of it; that of several has their states copied together."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._run = compiled.create_infer_request()
        types = (np.uint8, np.float32)  # pixels, and state if there is any
        self._inputs = [np.zeros(tuple(port.shape), kind) for port, kind in zip(compiled.inputs, types, strict=False)]
        for i, memory in enumerate(self._inputs):
            self._run.set_input_tensor(i, ov.Tensor(memory, shared_memory=True))
        self._results = len(compiled.outputs) - len(self._inputs) + 1
        self._outputs = [self._run.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    def start(self, frames_u8_BHWC: NDArray[np.uint8], pools: Sequence[_Pool], slots: Sequence[int]) -> None:
        """Begins with the frames of a batch, and its rows of state."""
        self._inputs[0][:] = frames_u8_BHWC
        for i, pool in enumerate(pools):
            if len(slots) == 1:
                self._run.set_input_tensor(1 + i, pool.tensor(int(pool.rows[slots[0]])))
                self._run.set_output_tensor(self._results + i, pool.tensor(pool.other(slots[0])))
            else:
                np.take(pool.states, pool.rows[list(slots)], 0, self._inputs[1 + i], "clip")  # else by way of a copy
        self._run.start_async()

    def wait(self) -> None:
        """Until the run has ended. Raises RuntimeError where it failed."""
        self._run.wait()

    def store(self, pools: Sequence[_Pool], slots: Sequence[int]) -> list[Floats]:
        """Gives the cameras their new state; returns what came out, which is good until the next start."""
        for pool, output in zip(pools, self._outputs[self._results:], strict=True):
            if len(slots) == 1:
                pool.rows[slots[0]] = pool.other(slots[0])
            else:
                pool.states[pool.rows[list(slots)]] = output
        return self._outputs[:self._results]


@functools.cache
def core() -> ov.Core:
    """The process's one OpenVINO core, never destroyed. OpenVINO 2026.4 gives the thread a signal stack of its own with
    each core and puts the one before back in the end: with several cores that one may be freed by then, and the next
    signal (Ctrl-C, say) would crash the process."""
    return ov.Core()


def precisions() -> tuple[str, ...]:
    """bf16 where the processor has it, then f32."""
    return ("bf16", "f32") if "BF16" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES") else ("f32",)


def key(spec: Spec) -> dict[str, str]:
    """What a graph depends on besides its model."""
    return {"library": ov.get_version(), "device": str(core().get_property(DEVICE, "FULL_DEVICE_NAME"))}


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    """Writes the graph, which is the same in all precisions: the one that the model carries, or a new one."""
    if not (folder / GRAPH).exists():
        graph = convert(spec.model) if spec.model.graph is None else read_carried(spec.model)
        with openvino_error("a built engine that cannot be written", f"space in {folder}",
                            "free some space, or set GATESTREAM_CACHE to another folder"):
            ov.save_model(graph, folder / GRAPH, compress_to_fp16=False)
    return {}


def read_carried(model: Model) -> ov.Model:
    """The graph that a model carries, with its heads. Raises EngineError."""
    from engines.runtime.step_graph import damaged

    assert model.graph is not None
    wanted = [1, *model.contract.input_size_hw, 3], [1, model.graph.features_TD.shape[1]]
    try:
        graph = core().read_model(model.graph.xml, ov.Tensor(
            np.frombuffer(model.graph.constants(model.tensors), np.uint8)))
        if [list(port.shape) for port in (graph.input(0), graph.output(0))] != [*wanted]:
            raise ValueError("its sizes are other ones than the contract's")
        return add_heads(graph, model.contract, model.tensors)
    except (ValueError, RuntimeError) as error:
        raise damaged(model, last_line(error)) from error


def open_engine(spec: Spec, precision: str, folder: Path, facts: Facts) -> OpenVINOEngine:
    """Opens what `build` wrote."""
    with openvino_error("OpenVINO refusing a built engine", "a graph it can load",
                        f"delete {folder}, or use --engine eager"):
        return engine_of(core().read_model(folder / GRAPH), spec.model.contract, spec.slots, precision,
                         facts.get("batches", ()))


def open_carried(spec: Spec, precision: str) -> OpenVINOEngine:
    """Opens the graph that the model carries."""
    return engine_of(read_carried(spec.model), spec.model.contract, spec.slots, precision)


def fitting_batches(graph: ov.Model, contract: Contract, precision: str) -> list[int]:
    """Those of BATCHES whose every camera gets bit for bit what it gets alone; none where they would save nothing."""
    if _multiplications(graph) >= MULTIPLICATIONS_PER_THREAD:
        return []
    clips = np.split(probe_clip(contract, max(BATCHES) * BATCH_FRAMES), max(BATCHES))
    one, fitting = compile_graph(graph, 1, precision), []
    alone = [_all_of(OpenVINOEngine(contract, {1: one}, 1, precision), [clip]) for clip in clips]
    for batch in BATCHES:
        with contextlib.suppress(RuntimeError):  # of a network that was traced for one camera
            several = compile_graph(graph, batch, precision, batch)
            # Graphs for one camera on several cores would share the cameras out, and none be left for this one.
            together = OpenVINOEngine(contract, {1: one, batch: several}, batch, precision)
            if np.array_equal(_all_of(together, clips[:batch]), np.concatenate(alone[:batch])):
                fitting.append(batch)
    return fitting


def _all_of(engine: OpenVINOEngine, clips_u8_BTHWC: Sequence[NDArray[np.uint8]]) -> Floats:
    """All that an engine gives for clips of as many cameras, side by side [B, T, outputs]."""
    rows = [engine.step(np.stack(frames), range(len(frames))) for frames in zip(*clips_u8_BTHWC, strict=True)]
    return np.stack([np.concatenate([row.features, *row.scores.values()], 1) for row in rows], 1)


def engine_of(graph: ov.Model, contract: Contract, slots: int, precision: str,
              batches: Sequence[int] = ()) -> OpenVINOEngine:
    """The engine of a graph, taking cameras one by one, or so many at a time where there are slots for them."""
    return OpenVINOEngine(contract, {batch: compile_graph(graph, slots, precision, batch)
                                     for batch in (1, *batches) if batch <= slots}, slots, precision)


def convert(model: Model) -> ov.Model:
    """A causal model's step as a graph for one camera: image uint8 BGR [1, H, W, 3] and its state in;
    features, each head's scores and its new state out, in this order."""
    tensors = {name: value.float().numpy() for name, value in model.network.heads.state_dict(prefix="heads.").items()}
    return add_heads(convert_step(model), model.contract, tensors)


def add_heads(graph: ov.Model, contract: Contract, tensors: Mapping[str, Floats]) -> ov.Model:
    """The graph with what each head makes of its features."""
    from openvino import opset13 as ops

    features, *state = graph.get_results()
    scores = []
    for head in contract.heads:
        weight, bias = (tensors[f"heads.{head}.{part}"] for part in ("weight", "bias"))
        product = ops.matmul(features.input_value(0), ops.constant(weight), False, True)
        scores.append(ops.result(ops.add(product, ops.constant(bias[None]))))
    return ov.Model([features, *scores, *state], graph.get_parameters(), "step")


def convert_step(model: Model) -> ov.Model:
    """`convert` without the heads."""
    import torch
    from torch import nn

    from engines.runtime.lowering import FlatStep

    contract = model.contract
    step = FlatStep(model.network, reversed_colours=contract.colour == "RGB").requires_grad_(False)
    step.heads = nn.ModuleDict()
    example = torch.zeros(1, 3, *contract.input_size_hw), *step.fresh_state()
    refused = openvino_error(f"OpenVINO failing to convert {contract.architecture}", "a network it can convert",
                             "use --engine eager")
    with refused, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter traces with what torch calls deprecated
        # As a function, whose weights are constants: a module would be traced twice, and each layer of it apart.
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda *inputs: step(*inputs), example, check_trace=False)
        graph = ov.convert_model(traced, example_input=example)
        graph.reshape({port: list(tensor.shape) for port, tensor in zip(graph.inputs, example, strict=True)})
        return _with_pixels(graph, contract)


def _with_pixels(graph: ov.Model, contract: Contract) -> ov.Model:
    """Moves layout and normalisation into the graph. Pixels stay BGR: the stem's weights are reversed instead, because
    OpenVINO 2026.4's own fusion of a channel reversal (RIC) gives wrong results in graphs with sliced channels."""
    mean, std = ([value / contract.value_scale for value in (values[::-1] if contract.colour == "RGB" else values)]
                 for values in (contract.mean, contract.std))
    steps = ov.preprocess.PrePostProcessor(graph)
    image = steps.input(0)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    image.preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(std)
    return steps.build()


def compile_graph(graph: ov.Model, slots: int, precision: str, batch: int = 1) -> ov.CompiledModel:
    """Compiles for few cameras at low latency: cameras run side by side, a heavy frame is shared between threads.
    batch: cameras at a time. Raises RuntimeError for a graph that cannot be made to take so many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = min(slots, cores)
    threads = min(cores, streams * max(1, round(_multiplications(graph) / MULTIPLICATIONS_PER_THREAD)))
    if batch > 1:
        graph = graph.clone()
        graph.reshape({port: [batch, *list(port.shape)[1:]] for port in graph.inputs})
    return core().compile_model(graph, DEVICE, {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # or the graphs for one camera and for several would wait for the same core
        "INFERENCE_PRECISION_HINT": precision})


def _multiplications(graph: ov.Model) -> float:
    """Multiplications of one frame's convolutions, which are nearly all of its work."""
    skipped = {"Convolution": 1, "GroupConvolution": 2}  # axes of the weights that count outputs
    return sum(float(np.prod(node.output(0).shape)) * float(np.prod(node.input_value(1).shape[skipped[kind]:]))
               for node in graph.get_ops() if (kind := node.get_type_name()) in skipped)


BACKEND = Backend(
    "openvino", "OpenVINO", precisions=precisions, key=key, build=build, open=open_engine,
    open_carried=open_carried,
    tune=lambda spec, precision, folder: {  # the batches that cameras can share
        "batches": fitting_batches(core().read_model(folder / GRAPH), spec.model.contract, precision)})
