"""ONNX: the step of a causal model as a file that any ONNX runtime can run, with its state in plain sight.

    write(model, Path("step.onnx"))
    engine = open_engine(model, Path("step.onnx"), slots=4)          # here with ONNX Runtime, elsewhere with any other

Inputs: `image` uint8 BGR [1, H, W, 3] at the contract's input size, and `state.<name>.in` for each leaf of state.
Outputs: `features` [1, D], `scores.<head>` (logits [1, K]), and `state.<name>.out`, which is the next frame's
`state.<name>.in`. Zeros are a camera that has seen nothing. Metadata: `gatestream.contract` (JSON),
`gatestream.model` (digest of the model) and `gatestream.agreement` (measured difference from eager).

Legend: H W the contract's input size, D features, K labels of a head.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.errors import EngineError, SinkError
from engines.model.contract import Contract
from engines.runtime.engine import Engine, Floats, StepResult
from engines.runtime.parity import TOLERANCE, compare, probe_clip, run_clip

if TYPE_CHECKING:
    import torch

    from engines.model.file import Model

CONTRACT, MODEL, AGREEMENT = "gatestream.contract", "gatestream.model", "gatestream.agreement"


class OnnxEngine(Engine):
    """A written file in ONNX Runtime on the CPU; the state of each camera is a dictionary of arrays."""

    name = "onnx"
    precision = "f32"

    def __init__(self, contract: Contract, file: Path, slots: int) -> None:
        self.contract, self.slots = contract, slots
        self._session = _session(file)
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._outputs = [port.name for port in self._session.get_outputs()]
        self._width = {port.name: port.shape[1] for port in self._session.get_outputs()}
        self._fresh = {port.name: np.zeros(port.shape, np.float32) for port in self._session.get_inputs()
                       if port.name != "image"}
        self._state: dict[int, dict[str, Floats]] = {}

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        rows = [self._one(frame[None], slot) for frame, slot in zip(frames_u8_BHWC, slots, strict=True)]
        return StepResult(self._stack(rows, "features"),
                          {head: self._stack(rows, f"scores.{head}") for head in self.contract.heads})

    def _one(self, image_u8_1HWC: NDArray[np.uint8], slot: int) -> dict[str, Floats]:
        state = self._state.get(slot, self._fresh)
        try:
            values = self._session.run(self._outputs, {"image": image_u8_1HWC, **state})
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise EngineError(f"ONNX Runtime failing while it ran ({_first_line(error)})", "a step without a fault",
                              "use --engine openvino or --engine eager") from error
        out: dict[str, Floats] = dict(zip(self._outputs, values, strict=True))
        self._state[slot] = {name: out[name.removesuffix(".in") + ".out"] for name in self._fresh}
        return out

    def _stack(self, rows: list[dict[str, Floats]], name: str) -> Floats:
        return np.concatenate([np.zeros((0, self._width[name]), np.float32), *(row[name] for row in rows)])

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._state.pop(slot, None)

    @property
    def state_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self._fresh.values())


def open_engine(model: Model, file: Path, slots: int = 1) -> OnnxEngine:
    """Opens a file of `write`. Raises EngineError when it is damaged or made from another model."""
    engine = OnnxEngine(model.contract, file, slots)
    if engine.metadata.get(MODEL) != model.digest:
        raise EngineError(f"ONNX file {file}, made for model {engine.metadata.get(MODEL)}", f"model {model.digest}",
                          "export it again from this model")
    return engine


def write(model: Model, out: Path) -> None:
    """Writes the file, after ONNX Runtime's calibrated scores on the probe clip were found to agree with eager's.

    Raises EngineError when the network is bidirectional, cannot be converted or does not agree, SinkError when the
    file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
            _write_proven(model, Path(aside) / out.name)
            (Path(aside) / out.name).replace(out)
    except OSError as error:
        raise SinkError(f"{out} ({error.strerror})", "a place that can be written",
                        "choose another folder or free some space") from error


def _write_proven(model: Model, out: Path) -> None:
    from engines.runtime.eager import EagerEngine

    frames = probe_clip(model.contract)
    wanted = run_clip(EagerEngine(model.network, model.contract, 1), frames)
    program = convert(model)
    program.save(out, external_data=False)
    agreement = compare(model.contract, wanted, run_clip(OnnxEngine(model.contract, out, 1), frames))
    if agreement > TOLERANCE:
        raise EngineError(f"ONNX Runtime scores that are off by {agreement:.1e} from eager", f"{TOLERANCE} at most",
                          "use another engine, and report this with the output of `gatestream doctor`")
    program.model.metadata_props[AGREEMENT] = f"{agreement:.1e}"
    program.save(out, external_data=False)


def convert(model: Model) -> torch.onnx.ONNXProgram:
    """The step of a model as an ONNX program, see the file's top."""
    import torch

    from engines.runtime.lowering import PixelStep

    step, contract = PixelStep(model.network, model.contract), model.contract
    image_u8 = torch.zeros(1, *contract.input_size_hw, 3, dtype=torch.uint8)
    names = list(step.network.state_shapes())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of optional packages that nothing here needs
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter uses what its own torch calls deprecated
            program = torch.onnx.export(
                step, (image_u8, *step.network.fresh_state()), dynamo=True, verbose=False,
                input_names=["image", *(f"state.{name}.in" for name in names)],
                output_names=["features", *(f"scores.{head}" for head in contract.heads),
                              *(f"state.{name}.out" for name in names)])
    except RuntimeError as error:
        raise EngineError(f"no ONNX form of {contract.architecture} ({_first_line(error)})",
                          "a network that can be converted", "use --engine openvino") from error
    assert program is not None
    program.model.metadata_props.update({CONTRACT: contract.model_dump_json(), MODEL: model.digest})
    return program


def _session(file: Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # see above
        raise EngineError(f"ONNX file {file} ({_first_line(error)})", "a file written by `gatestream export`",
                          "export it again") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
