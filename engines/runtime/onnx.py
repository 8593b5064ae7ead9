"""ONNX: a model as a file that any ONNX runtime, and NVIDIA's compilers, can take, all state in plain sight.
A causal model's step. Inputs: `image` uint8 BGR [B, H, W, 3] at the contract's input size, and `state.<name>.in` for
each leaf of state. Outputs: `features` [B, D], `scores.<head>` (logits [B, K]), and `state.<name>.out`, which is the
next frame's `state.<name>.in`. Zeros are a new camera.
A bidirectional model's clip. Input: `frames` uint8 BGR [B, T, H, W, 3]. Outputs: `features` and `scores.<head>`, means
over the clip.
A model's clip fusion. Inputs: `clips` [B, C, D], means of the features of each clip of a window, oldest first, zeros
where there is none, and `counts` [B, C], their frames. Outputs: `features`, `scores.<head>`, and `gates` [B, C].
Metadata: `gatestream.contract` (JSON), `gatestream.model` (digest of the model), `gatestream.precision`,
`gatestream.agreement` (measured difference from eager) and, as the file's last bytes, `gatestream.sha256` of the rest.
Legend: B batch, T frames of a clip, C clips of a window, H W the contract's input size, D features, K labels of a head.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, engine_error, first_line, imports_of
from engines.model.file import Model, whole_file
from engines.runtime.backend import Backend, Facts, Spec, one_torch_thread, refuse
from engines.runtime.engine import Engine, Floats, StepResult
from engines.runtime.parity import compare

_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # else it identifies this device and reports, for as long as the process runs
_before = os.environ.get(_TELEMETRY)
os.environ[_TELEMETRY] = "1"
try:
    with imports_of("onnx", "onnx, onnxscript and onnxruntime", "engine 'onnx'", error_type=EngineError):
        import onnxruntime
finally:
    del os.environ[_TELEMETRY]
    if _before is not None:
        os.environ[_TELEMETRY] = _before

CONTRACT, MODEL, PARITY = "gatestream.contract", "gatestream.model", "gatestream.agreement"
PRECISION, CHECKSUM = "gatestream.precision", "gatestream.sha256"
CHECKSUM_BYTES = 2 + 2 + len(CHECKSUM) + 2 + 64  # of this entry of the metadata in a file
FILE = "step.onnx"
PRECISIONS = ("f32", "f16")


class OnnxEngine(Engine):
    """A written file in ONNX Runtime on the CPU; the state of each camera is a dictionary of arrays.
    Raises EngineError for a file that is damaged, changed or made from another model."""

    name = "onnx"

    def __init__(self, model: Model, file: Path, slots: int) -> None:
        self.contract, self.slots = model.contract, slots
        self._session = _open(file)
        inputs = {port.name: port.shape for port in self._session.get_inputs()}
        outputs = {port.name: port.shape for port in self._session.get_outputs()}
        state = [name for name in inputs if name != "image"]
        results = ["features", *(f"scores.{head}" for head in self.contract.heads)]
        for name in ("image", *results, *(_new(name) for name in state)):
            if name not in inputs and name not in outputs:
                raise _foreign(file, f"without {name}")
        for name, shape in (inputs | outputs).items():
            if len(shape) < 2 or not all(isinstance(side, int) for side in shape):
                raise _foreign(file, f"whose {name} has the shape {shape}")
        metadata = self._session.get_modelmeta().custom_metadata_map
        if (digest := metadata.get(MODEL)) != model.digest:
            raise EngineError(f"ONNX file {file}, made for model {digest}", f"model {model.digest}",
                              "export it again from this model")
        _refuse_changed(file)
        self.precision = metadata[PRECISION]
        self._outputs, self._batch = list(outputs), inputs["image"][0]
        self._width = {name: outputs[name][1] for name in results}
        self._fresh = {name: np.zeros((1, *inputs[name][1:]), np.float32) for name in state}
        self._state: dict[int, dict[str, Floats]] = {}

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        rows: list[dict[str, Floats]] = []
        for start in range(0, len(slots), self._batch):
            frames_u8, here = frames_u8_BHWC[start:start + self._batch], slots[start:start + self._batch]
            rows += self._run(frames_u8, [self._state.get(slot, self._fresh) for slot in here])
        for slot, row in zip(slots, rows, strict=True):  # when all have run: a step that fails moves no camera
            self._state[slot] = {name: row[_new(name)] for name in self._fresh}
        return StepResult(self._stack(rows, "features"),
                          {head: self._stack(rows, f"scores.{head}") for head in self.contract.heads})

    def _run(self, frames_u8_BHWC: NDArray[np.uint8], states: list[dict[str, Floats]]) -> list[dict[str, Floats]]:
        """What comes out for each of some cameras; a batch of fewer than the file's is filled up with blank ones."""
        missing, cameras = self._batch - len(states), len(states)
        if missing:
            blank = np.zeros((missing, *frames_u8_BHWC.shape[1:]), np.uint8)
            frames_u8_BHWC, states = np.concatenate([frames_u8_BHWC, blank]), [*states, *[self._fresh] * missing]
        inputs = states[0] if len(states) == 1 else {
            name: np.concatenate([state[name] for state in states]) for name in self._fresh}
        with engine_error("ONNX Runtime failing while it ran", "a step without a fault",
                          "use --engine openvino or --engine eager", Exception):  # its errors have no base
            values = self._session.run(self._outputs, {"image": frames_u8_BHWC, **inputs})
        return [{name: value[row:row + 1] for name, value in zip(self._outputs, values, strict=True)}
                for row in range(cameras)]

    def _stack(self, rows: list[dict[str, Floats]], name: str) -> Floats:
        return np.concatenate([np.zeros((0, self._width[name]), np.float32), *(row[name] for row in rows)])

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._state.pop(slot, None)

    @property
    def state_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self._fresh.values())


def write(model: Model, out: Path, precision: str | None = None, batch: int = 1, fusion: bool = False) -> None:
    """Writes the file, after ONNX Runtime's results on the probe clip were found to agree with eager's.
    batch: cameras, clips or windows at a time; fusion: the model's clip fusion, not its network.
    Raises EngineError when the network cannot be converted or does not agree, UsageError for a model without what is
    asked for, SinkError when the file cannot be written."""
    spec = Spec(model, batch, precision)
    with whole_file(out) as aside:
        if model.contract.network.causal and not fusion:
            proof = BACKEND.build_proven(spec, aside.parent)["parity"]
            found = next(iter(proof.values()))["probabilities"]
        else:
            found = _build_clips(replace(spec, precision=precision or "f32"), aside.with_name(FILE), fusion)
        import onnx

        written = onnx.load(aside.with_name(FILE))
        del written.metadata_props[-1]  # the checksum
        written.metadata_props.add(key=PARITY, value=f"{found:.1e}")
        _save(written, aside)


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    """Writes the file of a step without `gatestream.agreement`."""
    _import_exporter()
    from engines.runtime.onnx_forms import step_form

    _convert(spec.model, step_form(spec.model, spec.slots), precision, folder / FILE)
    return {}


def _build_clips(spec: Spec, out: Path, fusion: bool) -> float:
    """Writes the file of a clip or of a clip fusion; returns how far its probabilities are from the network's."""
    _import_exporter()
    from engines.runtime.onnx_forms import clip_form, fusion_form, probe

    model, precision = spec.model, spec.precision or "f32"
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r} for an ONNX file", f"one of {', '.join(PRECISIONS)}",
                          "leave it out for f32")
    with one_torch_thread():
        form = (fusion_form if fusion else clip_form)(model, spec.slots)
        _convert(model, form, precision, out)
        inputs, wanted = probe(model, fusion)
    session, rows = _open(out), []
    for k in range(len(wanted.features)):
        row = {name: np.repeat(value[k:k + 1], spec.slots, 0) for name, value in inputs.items()}
        rows.append([value[:1] for value in session.run(form.outputs, row)])
    features, *rest = (np.concatenate(column) for column in zip(*rows, strict=True))
    parity = compare(model.contract, wanted, StepResult(features, dict(zip(model.contract.heads, rest, strict=False))))
    if not parity.holds:
        raise refuse(BACKEND.title, {precision: parity})
    return parity.probabilities


def _import_exporter() -> None:
    with imports_of("onnx", "onnx, onnxscript and onnxruntime", "engine 'onnx'", error_type=EngineError):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401


def _convert(model: Model, form: Any, precision: str, out: Path) -> None:
    import onnx

    from engines.runtime.onnx_forms import convert

    program = convert(form, precision, model.contract.architecture)
    program.model.metadata_props.update(
        {CONTRACT: model.contract.model_dump_json(), MODEL: model.digest, PRECISION: precision})
    program.save(out, external_data=False)
    _save(onnx.load(out), out)


def _save(written: Any, out: Path) -> None:
    """Writes a file with its checksum as the last entry of its metadata, which is the last of a file's fields."""
    import onnx

    raw = written.SerializeToString()
    entry = onnx.StringStringEntryProto(key=CHECKSUM, value=hashlib.sha256(raw).hexdigest())
    out.write_bytes(raw + onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def _refuse_changed(file: Path) -> None:
    """Needs no package to read it: what was measured holds for these bytes only."""
    raw = memoryview(file.read_bytes())
    before, entry = raw[:-CHECKSUM_BYTES], bytes(raw[-CHECKSUM_BYTES:])
    if not entry.endswith(hashlib.sha256(before).hexdigest().encode()):
        raise _foreign(file, "changed after it was written, or written by an older gatestream")


def _open(file: Path) -> Any:
    try:
        return onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise _foreign(file, first_line(error)) from error


def _new(name: str) -> str:
    """The output that is the next frame's input of this name."""
    return name.removesuffix(".in") + ".out"


def _foreign(file: Path, why: str) -> EngineError:
    return EngineError(f"ONNX file {file} ({why})", "a file written by `gatestream export`", "export it again")


BACKEND = Backend("onnx", "ONNX Runtime", precisions=lambda: PRECISIONS[:1], on_request=PRECISIONS[1:], build=build,
                  open=lambda spec, _, folder, __: OnnxEngine(spec.model, folder / FILE, spec.slots))
