"""What is exported goes through NVIDIA's own parser and compiler, which need no GPU: TensorRT for RTX.

Here each backbone with one module at least, small ones for all targets; `python tests/tensorrt_builds.py` does every
network in both precisions for all of them. That the files' numbers are eager's is held by `test_onnx.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which there is for Linux on x86-64")
pytest.importorskip("onnxscript", reason="needs the packages of gatestream[onnx]")
import onnx
from tensorrt_builds import OTHERS, PRECISIONS, STEPS, TARGETS, build, write

from engines.errors import EngineError

ONE = TARGETS[1:2]
FLOATS = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16"}
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("gesture", "f32", TARGETS),
    ("gesture", "f16", TARGETS),
    ("stsm-mobilenetv2", "f32", TARGETS),
    ("gsm-mobilenetv2", "f16", ONE),
    ("tsm-resnet18", "f32", TARGETS),
    ("gsf-resnet50", "f32", ONE),
    ("gsm-bninception", "f32", ONE),
    ("tsn-inceptionv3", "f16", ONE),
    ("base", "f32", ONE),
    ("clip:gsf-resnet50", "f16", ONE),
    ("clip:gsm-bninception", "f32", ONE),
    ("fusion:attention", "f32", TARGETS),
    ("fusion:attention", "f16", TARGETS),
]
if os.environ.get("GATESTREAM_TENSORRT"):
    CASES = [(name, precision, TARGETS) for precision in PRECISIONS for name in (*STEPS, *OTHERS)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "precision", "targets"), CASES)
def test_what_is_exported_is_built(name: str, precision: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "step.onnx"
    write(name, precision, file)
    graph = onnx.load(file).graph
    assert not {port.name for port in graph.input} & {port.name for port in graph.output}
    assert {port.type.tensor_type.elem_type for port in (*graph.input, *graph.output)} \
        <= {onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8}
    assert {node.op_type for node in graph.node if any(one in ("image", "frames") for one in node.input)} \
        <= {"Cast"}
    weights = {one.data_type for one in graph.initializer if len(one.dims) > 1}
    assert weights & FLOATS.keys() == {number for number, name in FLOATS.items() if name == precision}
    for target in targets:
        assert build(file, target) > 100_000


def test_an_unknown_target_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"target 'SM90'.*SM75.*SM120") as error:
        build(tmp_path / "step.onnx", "SM90")
    assert "\n" not in str(error.value)


def test_what_it_refuses_says_so_with_the_file(tmp_path: Path) -> None:
    """Such as what earlier files began with: a transposition of bytes."""
    byte, helper = onnx.TensorProto.UINT8, onnx.helper
    node = helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2])
    ports = ([helper.make_tensor_value_info("image", byte, [1, 4, 6, 3])],
             [helper.make_tensor_value_info("turned", byte, [1, 3, 4, 6])])
    onnx.save(helper.make_model(helper.make_graph([node], "turns", *ports), ir_version=10,
                                opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "turns.onnx")
    with pytest.raises(EngineError, match=r"turns\.onnx.*SM89"):
        build(tmp_path / "turns.onnx", "SM89")
