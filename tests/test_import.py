"""`gatestream import-official`: the checkpoint's function, the authors' preprocessing, the right names on classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engines
from engines.errors import UsageError
from engines.importing import contract_of, read_labels
from engines.official import ARCHITECTURES, architecture_of, official_name
from stream.cli import main

CLASSES = ("Pushing", "Pulling", "Opening", "Closing", "Turning")
FILE = "something-v1_RGB_BNInception_avg_segment12_checkpoint.pth.tar"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two half-gated modules, one of whose statistics is beyond half precision."""
    torch.manual_seed(0)
    network = engines.build("gsf-bninception", heads={"action": len(CLASSES)}, percent=50,
                            places=("inception_4a_1x1", "inception_5b_1x1"))
    network.get_submodule("backbone.conv1_7x7_s2_bn").running_var.fill_(1e6)  # type: ignore[operator, union-attr]
    path = tmp_path_factory.mktemp("official") / FILE
    torch.save({"epoch": 59, "model_state_dict": {f"module.{official_name(name, 'gsf-bninception')}": value
                                                  for name, value in network.state_dict().items()}}, path)
    return path


def test_the_model_file_computes_what_the_checkpoint_does(checkpoint: Path, tmp_path: Path,
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "gsf.safetensors"
    labels.write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8-sig")
    assert main(["import-official", str(checkpoint), "--labels", str(labels), "--out", str(out)]) == 0
    assert "gsf-bninception, 12 frames in 4 s, 5 classes" in capfd.readouterr().out
    model, wanted = engines.load(out), engines.official.load(checkpoint, "gsf-bninception", segments=12)
    assert model.contract.name == "gsf"
    assert model.contract.heads == {"action": CLASSES}
    assert (model.contract.frame_rate, model.contract.clip_frames, model.contract.window_clips) == (3.0, 12, 1)
    assert (model.network.segments, model.contract.warmup_frames) == (12, 12)  # the first whole clip counts
    clip = torch.randn(1, 3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (engines.clip_scores(network, clip)["action"] for network in (model.network, wanted))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_recognised_and_prepared_for_as_published(arch: str) -> None:
    with torch.device("meta"):
        backbone = engines.build(arch, heads={"action": 2})
    names = {official_name(name, arch): value for name, value in backbone.state_dict().items()}
    assert architecture_of("a file", names) == arch
    made = contract_of(backbone, ("a", "b"), 4.0, "x", {})
    sides = {"inceptionv3": (229, 261)}.get(arch.partition("-")[2], (224, 256))
    assert (made.input_size_hw[0], made.cover_hw[0], made.resize_filter) == (*sides, "pillow-bilinear")
    values: dict[str, Any] = {"colour": "BGR", "value_scale": 1.0, "mean": (104, 117, 128), "std": (1, 1, 1)}
    if "resnet" in arch:
        values = {"colour": "RGB", "value_scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert {name: getattr(made, name) for name in values} == values
    assert made.options.get("percent") == (100 if arch.startswith("gsf") else None)


@pytest.mark.parametrize(("arguments", "named"), [
    (["--labels", "four.txt"], "4 labels"), (["--labels", "twice.txt"], "4 of them different"),
    (["--labels", "none.txt"], "none.txt"), (["--arch", "gsf-vgg"], "gsf-vgg"), (["--out", "x.pth"], "x.pth"),
    (["--name", "a/b"], "name")])
def test_wrong_use_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
                            named: str, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("four.txt").write_text("a\nb\nc\nd\n")
    Path("twice.txt").write_text("a\nb\nc\nd\na\n")
    assert main(["import-official", str(checkpoint), "--out", "x.safetensors", *arguments]) == 2
    assert named in capfd.readouterr().err
    assert not Path("x.safetensors").exists()


def test_another_architectures_checkpoint_is_refused(checkpoint: Path, tmp_path: Path,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    assert main(["import-official", str(checkpoint), "--arch", "gsm-bninception", "--out", str(out)]) == 1
    assert "base_model." in capfd.readouterr().err
    plain = tmp_path / "plain.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, plain)
    assert main(["import-official", str(plain), "--out", str(out)]) == 1
    assert "conv1.weight" in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("text", "sort", "labels"), [
    ("b\na\n\n c \n", False, ["b", "a", "c"]), ("b\na\n", True, ["a", "b"]),
    ('{"b": "0", "a": "2", "c": 1}', False, ["b", "c", "a"]), ('{"b": "0", "a": "2"}', False, None),
    ('{"b": "0", "a": "0"}', False, None), ('{"b": "x"}', False, None), ('{"b": [1]}', False, None),
    ('{"b"', False, None)])
def test_label_files(tmp_path: Path, text: str, sort: bool, labels: list[str] | None) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    if labels is not None:
        assert read_labels(path, sort) == labels
        return
    with pytest.raises(UsageError, match="label file"):
        read_labels(path, sort)


def test_a_label_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(UsageError, match="label file"):
        read_labels(path)
