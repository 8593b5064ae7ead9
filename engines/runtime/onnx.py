"""ONNX: the step of a causal model as a file that any ONNX runtime can run, with its state in plain sight.
Inputs: `image` uint8 BGR [1, H, W, 3] at the contract's input size, and `state.<name>.in` for each leaf of state.
Outputs: `features` [1, D], `scores.<head>` (logits [1, K]), and `state.<name>.out`, which is the next frame's
`state.<name>.in`. Zeros are a new camera. Metadata: `gatestream.contract` (JSON),
`gatestream.model` (digest of the model) and `gatestream.agreement` (measured difference from eager).
Legend: H W the contract's input size, D features, K labels of a head."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, engine_error, first_line, imports_of
from engines.model.file import Model, whole_file
from engines.runtime.backend import Backend, Facts, Spec
from engines.runtime.engine import Engine, Floats, StepResult

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
FILE = "step.onnx"


class OnnxEngine(Engine):
    """A written file in ONNX Runtime on the CPU; the state of each camera is a dictionary of arrays.
    Raises EngineError for a file that is damaged or made from another model."""

    name = "onnx"
    precision = "f32"

    def __init__(self, model: Model, file: Path, slots: int) -> None:
        self.contract, self.slots = model.contract, slots
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise _foreign(file, first_line(error)) from error
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
        if (digest := self._session.get_modelmeta().custom_metadata_map.get(MODEL)) != model.digest:
            raise EngineError(f"ONNX file {file}, made for model {digest}", f"model {model.digest}",
                              "export it again from this model")
        self._outputs = list(outputs)
        self._width = {name: outputs[name][1] for name in results}
        self._fresh = {name: np.zeros(inputs[name], np.float32) for name in state}
        self._state: dict[int, dict[str, Floats]] = {}

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        rows = [self._run(frame[None], self._state.get(slot, self._fresh))
                for frame, slot in zip(frames_u8_BHWC, slots, strict=True)]
        for slot, row in zip(slots, rows, strict=True):  # when all have run: a step that fails moves no camera
            self._state[slot] = {name: row[_new(name)] for name in self._fresh}
        return StepResult(self._stack(rows, "features"),
                          {head: self._stack(rows, f"scores.{head}") for head in self.contract.heads})

    def _run(self, image_u8_1HWC: NDArray[np.uint8], state: dict[str, Floats]) -> dict[str, Floats]:
        with engine_error("ONNX Runtime failing while it ran", "a step without a fault",
                          "use --engine openvino or --engine eager", Exception):  # as above
            values = self._session.run(self._outputs, {"image": image_u8_1HWC, **state})
        return dict(zip(self._outputs, values, strict=True))

    def _stack(self, rows: list[dict[str, Floats]], name: str) -> Floats:
        return np.concatenate([np.zeros((0, self._width[name]), np.float32), *(row[name] for row in rows)])

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._state.pop(slot, None)

    @property
    def state_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self._fresh.values())


def write(model: Model, out: Path) -> None:
    """Writes the file, after ONNX Runtime's results on the probe clip were found to agree with eager's.
    Raises EngineError when the network is bidirectional, cannot be converted or does not agree, SinkError when the
    file cannot be written."""
    with whole_file(out) as aside:
        facts = BACKEND.build_proven(Spec(model), aside.parent)
        import onnx

        written = onnx.load(aside.with_name(FILE))
        written.metadata_props.add(key=PARITY, value=f"{facts['parity']['f32']['probabilities']:.1e}")
        onnx.save(written, aside)


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    """Writes the file without `gatestream.agreement`."""
    convert(spec.model, folder / FILE)
    return {}


def convert(model: Model, out: Path) -> None:
    """Writes the step of a model as an ONNX file with the inputs and outputs named at this file's top."""
    with imports_of("onnx", "onnx, onnxscript and onnxruntime", "engine 'onnx'", error_type=EngineError):
        import onnx  # noqa: F401 - the exporter needs them
        import onnxscript  # noqa: F401
    import torch

    from engines.runtime.lowering import PixelStep

    step, contract = PixelStep(model.network, model.contract), model.contract
    image_u8 = torch.zeros(1, *contract.input_size_hw, 3, dtype=torch.uint8)
    names = list(step.state_shapes())
    logger = logging.getLogger("torch.onnx")
    refused = engine_error(f"no ONNX form of {contract.architecture}", "a network that can be converted",
                           "use --engine openvino")
    with refused, torch.no_grad(), warnings.catch_warnings(), ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # it warns of optional packages that nothing here needs
        warnings.simplefilter("ignore")  # the exporter uses what its own torch calls deprecated
        program = torch.onnx.export(
            step, (image_u8, *step.fresh_state()), dynamo=True, verbose=False,
            input_names=["image", *(f"state.{name}.in" for name in names)],
            output_names=["features", *(f"scores.{head}" for head in contract.heads),
                          *(f"state.{name}.out" for name in names)])
    assert program is not None
    program.model.metadata_props.update({CONTRACT: contract.model_dump_json(), MODEL: model.digest})
    program.save(out, external_data=False)


def _new(name: str) -> str:
    """The output that is the next frame's input of this name."""
    return name.removesuffix(".in") + ".out"


def _foreign(file: Path, why: str) -> EngineError:
    return EngineError(f"ONNX file {file} ({why})", "a file written by `gatestream export`", "export it again")


BACKEND = Backend("onnx", "ONNX Runtime", precisions=lambda: ("f32",), build=build,
                  open=lambda spec, _, folder, __: OnnxEngine(spec.model, folder / FILE, spec.slots))
