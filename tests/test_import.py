"""`gatestream import-official`: the checkpoint's function, the authors' preprocessing, the right names on classes."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import one_line
from test_official import Trap

import engines
from engines.datasets.tables import read_labels
from engines.errors import UsageError
from engines.model.contract import NO_BACKGROUND_EVENTS, EventRule
from engines.model.import_official import contract_of, import_official
from engines.model.official import ARCHITECTURES, architecture_of, official_name
from engines.model.preprocess import normalise, prepare
from engines.model.scores import probabilities
from stream.commands.cli import main
from stream.frame import Prediction
from stream.recognizer import Recognizer

CLASSES = ("Pushing", "Pulling", "Opening", "Closing", "Turning")
FILE = "something-v1_RGB_BNInception_avg_segment12_checkpoint.pth.tar"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two half-gated modules, one of whose statistics is beyond half precision."""
    torch.manual_seed(0)
    network = engines.build("gsf-bninception", heads={"action": len(CLASSES)}, gate_ratio=50,
                            sites=("inception_4a_1x1", "inception_5b_1x1"))
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


def test_a_clip_played_live_ends_with_the_checkpoints_scores(checkpoint: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "gsf.safetensors", np.random.default_rng(0)
    made = import_official(checkpoint, out, labels=CLASSES, segments=4)
    images = [rng.integers(0, 255, (240, 320, 3), dtype=np.uint8) for _ in range(4)]
    with Recognizer.open(out) as recognizer:
        items = [item for t, image in enumerate(images) for item in recognizer.push(image, t / made.frame_rate)]
    seen = [item for item in items if isinstance(item, Prediction)]
    assert [item.warm for item in seen] == [False, False, False, True]
    clip = torch.from_numpy(normalise(np.stack([prepare(image, made) for image in images]), made))[None]
    with torch.no_grad():
        logits = engines.clip_scores(engines.official.load(checkpoint, "gsf-bninception", 4), clip)["action"][0]
    wanted = probabilities(logits.numpy(), 1.0)
    for given in (seen[-1].heads["action"].now, seen[-1].heads["action"].window):
        np.testing.assert_allclose([dict(given)[label] for label in CLASSES], wanted, atol=1e-6)


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
    assert made.network.gate_ratio == (100 if arch.startswith("gsf") else None)


@pytest.mark.parametrize(("arguments", "named"), [
    (["--labels", "four.txt"], "4 labels"), (["--labels", "twice.txt"], "4 of them different"),
    (["--labels", "none.txt"], "none.txt"), (["--arch", "gsf-vgg"], "gsf-vgg"), (["--out", "x.pth"], "x.pth"),
    (["--name", "a/b"], "name"), (["--background", "2o"], "did you mean '2'?")])
def test_wrong_use_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
                            named: str, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("four.txt").write_text("a\nb\nc\nd\n")
    Path("twice.txt").write_text("a\nb\nc\nd\na\n")
    assert main(["import-official", str(checkpoint), "--out", "x.safetensors", *arguments]) == 2
    assert named in capfd.readouterr().err
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize("background", ["Opening", None])
def test_a_class_may_mean_nothing(checkpoint: Path, tmp_path: Path, background: str | None) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "x.safetensors"
    labels.write_text("\n".join(CLASSES))
    options = [] if background is None else ["--background", background]
    assert main(["import-official", str(checkpoint), "--labels", str(labels), "--out", str(out), *options]) == 0
    contract = engines.load(out).contract
    assert contract.background == background
    assert contract.events == (NO_BACKGROUND_EVENTS if background is None else EventRule())


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


def _archive(path: Path, compression: int, **changes: bytes) -> None:
    """A checkpoint whose parts are written with another compression or with other content."""
    whole = io.BytesIO()
    torch.save({"state_dict": {"new_fc.weight": torch.zeros(1000)}}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            raw = old.read(entry)
            name = Path(entry.filename).name
            new.writestr(entry.filename, raw.replace(b"M\xe8\x03", changes["count"]) if name == "data.pkl" and
                         "count" in changes else changes.get(f"_{name}", raw))


def _folder(path: Path) -> None:
    path.mkdir()


def _zipped_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.with_name("ran"))))


def _with_code(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Trap(path.with_name("ran"))}, path)


SPOILT: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "no file": (lambda path: None, 2, "no such file;"),
    "a folder": (_folder, 2, "no such file but a folder"),
    "an empty file": (lambda path: path.write_bytes(b""), 1, "truncated"),
    "text": (lambda path: path.write_text("no weights, but some text\n" * 50), 1, "checkpoint"),
    "a pickle with code": (_pickled, 1, "checkpoint"),
    "a checkpoint with code": (_with_code, 1, "was not read"),
    "numbers without a table": (lambda path: torch.save([1, 2], path), 1, "without a table of weights"),
    "safetensors": (lambda path: save_file({"conv1.weight": torch.zeros(3)}, path), 1, ""),
    "an archive of something else": (_zipped_text, 1, "truncated"),
    "a compressed bomb": (lambda path: _archive(path, zipfile.ZIP_DEFLATED, _0=bytes(10**7)), 1, "would grow to 100"),
    "a tensor that claims more than is there": (
        lambda path: _archive(path, zipfile.ZIP_STORED, count=b"\x8a\x06" + (10**13).to_bytes(6, "little")), 1, ""),
    "a tensor larger than its memory": (
        lambda path: torch.save({"new_fc.weight": torch.zeros(1).expand(10**9, 10**9)}, path), 1, "new_fc.weight"),
    "weights that are no numbers": (
        lambda path: torch.save({"new_fc.weight": torch.full((5, 3), torch.nan)}, path), 1, "new_fc.weight"),
    "a quantised network": (lambda path: torch.save({"new_fc.weight": torch.zeros(5, 3, dtype=torch.int8)}, path), 1,
                            "new_fc.weight"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_no_checkpoint_costs_one_line(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, code, told = SPOILT[case]
    path, out = tmp_path / "x", tmp_path / "out.safetensors"
    spoil(path)
    capfd.readouterr()
    assert main(["import-official", str(path), "--out", str(out)]) == code
    line = one_line(capfd)
    assert str(path) in line
    assert told in line
    assert "bug" not in line
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_a_truncated_checkpoint_costs_one_line(checkpoint: Path, tmp_path: Path,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    assert main(["import-official", str(path), "--out", str(tmp_path / "out.safetensors")]) == 1
    assert "truncated" in one_line(capfd)


def test_a_checkpoint_in_half_precision_is_imported(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    halved = {name: value.half() if value.is_floating_point() else value for name, value in content.items()
              if not name.endswith("conv1_7x7_s2_bn.running_var")}  # which is beyond half precision
    half = tmp_path / "half_segment4.pth"
    torch.save({name: halved.get(name, value) for name, value in content.items()}, half)
    import_official(half, tmp_path / "half.safetensors")
    network = engines.load(tmp_path / "half.safetensors").network
    for name, value in network.state_dict().items():
        stored = content[f"module.{official_name(name, 'gsf-bninception')}"]
        if value.is_floating_point() and not name.endswith("conv1_7x7_s2_bn.running_var"):
            assert torch.equal(value, stored.half().float()), name


@pytest.mark.parametrize(("file_name", "segments"), [
    ("x_avg_segment16_checkpoint.pth.tar", 16), ("segments_4.pth", 4), ("x.pth", 8), ("x_segment0.pth", 8)])
def test_segments_are_those_of_the_file_name(checkpoint: Path, tmp_path: Path, file_name: str, segments: int) -> None:
    path = tmp_path / file_name
    path.hardlink_to(checkpoint)
    assert import_official(path, tmp_path / "out.safetensors").clip_frames == segments


@pytest.mark.parametrize(("text", "sort", "labels"), [
    ("b\na\n\n c \n", False, ["b", "a", "c"]), ("b\na\n", True, ["a", "b"]),
    ('{"b": "0", "a": "2", "c": 1}', False, ["b", "c", "a"]), ('{"b": "0", "a": "2"}', False, None),
    ('{"b": "0", "a": "0"}', False, None), ('{"b": "x"}', False, None), ('{"b": [1]}', False, None),
    ('{"b"', False, None)])
def test_label_files(tmp_path: Path, text: str, sort: bool, labels: list[str] | None) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    if labels is not None:
        assert list(read_labels(path, sort)) == labels
        return
    with pytest.raises(UsageError, match="label file"):
        read_labels(path, sort)


def test_a_label_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(UsageError, match="label file"):
        read_labels(path)
