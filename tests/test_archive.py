"""An archive is labelled as `gatestream run` labels each of its videos, whatever happens meanwhile."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records import event, frame

from engines.errors import EngineError, SourceError, UsageError
from stream.archive.label import Labeller, find_recordings, label
from stream.archive.ray import silence_ray
from stream.commands.cli import main
from stream.commands.label import LabelProgress
from stream.frame import Event, Frame

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (gatestream[cluster])")


def read(folder: Path) -> list[dict[str, Any]]:
    """All that is labelled, as a program that knows only Parquet reads it."""
    return list(parquet.read_table(folder).to_pylist())


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_an_archive_is_labelled_as_each_video_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs Ray (gatestream[cluster])")
    archive, out = tmp_path / "archive", tmp_path / "events.parquet"
    (archive / "deep").mkdir(parents=True)
    wanted = []
    for name, seed in (("a.frames", 3), ("deep/b.frames", 4)):
        path = archive / name
        room = f"sim://gestures?seed={seed}&seconds=8&realtime=0&rate=15&width=160&height=120"
        assert main(["record", room, "--out", str(path)]) == 0
        assert main(["run", str(path), "--json", str(tmp_path / "said")]) == 0
        said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
        wanted += [(str(path), one["label"], one["started_at"], one["ended_at"], one["score"]) for one in said
                   if one["type"] == "event" and not one["open"]]
    assert wanted
    (archive / "broken.mp4").write_bytes(b"nothing")
    (archive / "notes.txt").write_text("no video")
    capfd.readouterr()
    assert main(["label", str(archive), "--out", str(out), "--workers", "1"]) == 0
    printed, told = capfd.readouterr()
    assert printed == f"{out}: {len(wanted)} events in 3 recordings, 1 of them unreadable\n"
    assert (told.count("\n"), told.count("broken.mp4")) == (1, 1)  # and nothing of Ray's
    rows = read(out)
    assert [tuple(row[key] for key in ("path", "label", "started_at", "ended_at", "score"))
            for row in rows if row["label"]] == wanted
    [failed] = [row for row in rows if row["error"]]
    assert failed["path"] == str(archive / "broken.mp4")
    first = rows[0]
    assert (first["video"], first["model"], first["duration_s"], first["frame_rate"]) == ("a.frames", "gesture", 8, 15)
    assert first["engine"].startswith("openvino")
    assert len(first["digest"]) == 64


# ---- whatever happens meanwhile --------------------------------------------------------------------------------

class RayError(Exception):
    pass


@dataclass
class FakeRay:
    """Does in this process, at once, what Ray's workers do."""

    dies_at: str = ""  # the video at which a worker is killed
    interrupted_after: int = 99  # answers, before Ctrl-C
    labelled: list[str] = field(default_factory=list)
    workers: int = 0
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RayError))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def remote(self, kind: Callable[..., Any]) -> Any:
        def start(*values: Any) -> Any:
            self.workers += 1
            worker = kind(*values)
            return SimpleNamespace(prepare=SimpleNamespace(remote=lambda: lambda: worker.prepare()),
                                   label=SimpleNamespace(remote=lambda name: lambda: self._label(worker, name)))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def _label(self, worker: Any, name: bytes) -> Any:
        self.labelled.append(Path(os.fsdecode(name)).name)
        if self.labelled[-1] == self.dies_at:
            raise RayError("SIGSEGV")
        return worker.label(name)

    def get(self, answer: Any) -> Any:
        return [one() for one in answer] if isinstance(answer, list) else answer()

    def wait(self, answers: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        if len(self.labelled) >= self.interrupted_after:
            raise KeyboardInterrupt
        return answers[:1], answers[1:]


RECOGNIZER = SimpleNamespace(engine=SimpleNamespace(name="fake", precision="f32"), reset=lambda camera: None)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Videos of two seconds with one event each; one called bad.mp4 cannot be read, at odd.mp4 our code fails."""
    fake = FakeRay()

    @contextmanager
    def connect(address: str | None, log_to_driver: bool) -> Iterator[FakeRay]:
        yield fake

    def prepare(labeller: Labeller) -> None:
        labeller._recognizer = RECOGNIZER  # type: ignore[assignment]

    def recognize(recognizer: Any, file: Path, camera: str, on_frame: Callable[[Frame], object]) -> list[Event]:
        if file.name == "bad.mp4":
            raise SourceError("noise", "a video", "convert it")
        if file.name == "odd.mp4":
            raise ZeroDivisionError("division by zero")
        for k in range(20):
            on_frame(Frame(frame(0.0).picture, k / 10, k, camera))
        return [event("left", 0.5, 1.0)]

    monkeypatch.setattr("stream.archive.label.connect_ray", connect)
    monkeypatch.setattr("stream.archive.label.Labeller.prepare", prepare)
    monkeypatch.setattr("stream.archive.label.recognize_file", recognize)
    return fake


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.mp4").write_text(name)
    return folder


def test_every_row_says_where_it_came_from(ray: FakeRay, archive: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    label(archive, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 4) for done in range(5)]
    row = read(tmp_path / "out")[0]
    digest = row.pop("digest")
    assert row == {"path": str(archive / "a.mp4"), "video": "a.mp4", "head": "gesture", "label": "left", "score": 0.93,
                   "started_at": 0.5, "ended_at": 1.0, "error": None, "duration_s": 2.0, "frame_rate": 10.0,
                   "model": "gesture", "engine": "fake f32"}
    assert len(digest) == 64


@pytest.mark.parametrize(("name", "words"), [("bad.mp4", "noise"), ("odd.mp4", "ZeroDivisionError"),
                                             ("killed.mp4", "worker ended")])
def test_an_error_costs_one_video(ray: FakeRay, archive: Path, tmp_path: Path, name: str, words: str) -> None:
    (archive / name).touch()
    ray.dies_at = "killed.mp4"
    done = label(archive, tmp_path / "out", workers=1)
    assert (done.recordings, done.events, list(done.failed)) == (5, 4, [str(archive / name)])
    assert words in done.failed[str(archive / name)]
    assert [row["video"] for row in read(tmp_path / "out") if row["error"]] == [name]
    assert ray.workers == 1 + (name == "killed.mp4")


def test_what_is_done_stays_after_an_interrupt_and_is_not_done_again(
        ray: FakeRay, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (archive / "bad.mp4").touch()
    ray.interrupted_after = 4
    command = ["label", str(archive), "--out", str(out), "--workers", "1"]
    assert main(command) == 130
    assert capsys.readouterr() == ("", f"gatestream: {out}: 4 of 5 videos are labelled; go on with --resume\n")
    assert [row["video"] for row in read(out)] == ["a.mp4", "b.mp4", "bad.mp4", "c.mp4"]
    (out / ".d.mp4-0.parquet.x1").mkdir()  # what SIGKILL leaves
    (archive / "a.mp4").write_text("another film")
    ray.interrupted_after = 99
    ray.labelled.clear()
    assert main([*command, "--resume"]) == 0
    assert ray.labelled == ["a.mp4", "bad.mp4", "d.mp4"]  # changed, failed, new
    assert "4 events in 5 recordings (2 of them earlier), 1 of them" in capsys.readouterr().out
    assert [row["video"] for row in read(out)] == ["a.mp4", "b.mp4", "bad.mp4", "c.mp4", "d.mp4"]
    assert not list(out.glob(".*"))


def test_labels_that_are_there_are_neither_lost_nor_mixed(ray: FakeRay, archive: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command = ["label", str(archive), "--out", str(out)]
    other = SimpleNamespace(contract=SimpleNamespace(name="mine"), digest="f" * 64)

    def refusal(*words: str) -> str:
        assert main([*command, *words]) == 2
        return capsys.readouterr().err

    assert main(command) == 0
    capsys.readouterr()
    assert "go on with --resume, begin again with --overwrite" in refusal()
    assert "one of them" in refusal("--resume", "--overwrite")
    assert len(read(out)) == 4
    with monkeypatch.context() as patch:
        patch.setattr("engines.load", lambda name: SimpleNamespace(require_taught=lambda: other))
        assert "another model" in refusal("--resume")
    (archive / "d.mp4").unlink()
    assert main([*command, "--overwrite"]) == 0
    assert [row["video"] for row in read(out)] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("name", ["holiday.txt", "theirs.parquet"])
@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_of_others_is_never_touched(ray: FakeRay, archive: Path, tmp_path: Path, name: str,
                                             option: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if name.endswith("parquet"):
        import pyarrow
        parquet.write_table(pyarrow.table({"a": [1]}), out / name)
    else:
        (out / name).write_text("sun")
    before = (out / name).read_bytes()
    assert main(["label", str(archive), "--out", str(out), *option]) == 2
    assert (out / name).read_bytes() == before
    assert list(out.iterdir()) == [out / name]


def test_an_engine_that_cannot_be_built_is_an_error_of_its_own(ray: FakeRay, archive: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.archive.label.Labeller.prepare",
                        lambda labeller: EngineError("no GPU", "one", "buy it"))
    with pytest.raises(EngineError, match="no GPU"):
        label(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["_a.mp4", "a b/ü.mp4", "x" * 120 + ".mp4"])
def test_every_name_of_a_video_is_read_again(ray: FakeRay, tmp_path: Path, name: str) -> None:
    video = tmp_path / "archive" / name
    video.parent.mkdir(parents=True)
    video.touch()
    label(tmp_path / "archive", tmp_path / "out")
    assert [row["video"] for row in read(tmp_path / "out")] == [name]


def test_progress_is_told_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter((0.0, 30.0, 61.0, 70.0, 125.0))
    monkeypatch.setattr("stream.commands.label.time.monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO, "gatestream"), closing(LabelProgress(io.StringIO())) as progress:
        for done in (10, 11, 20, 21, 22):  # ten by an earlier run
            progress(done, 50)
    assert caplog.messages == ["20 of 50 videos labelled, about 3 min left",
                               "22 of 50 videos labelled, about 5 min left"]


def test_progress_on_a_terminal_leaves_the_streams_as_they_were() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before, terminal = (sys.stdout, sys.stderr), Terminal()
    with silence_ray(), closing(LabelProgress(terminal)) as progress:
        progress(1, 4)
    assert (sys.stdout, sys.stderr) == before
    assert "1/4" in terminal.getvalue()


def test_ray_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("gatestream")
    log.addHandler(handler)
    try:
        with silence_ray() as shown:
            print("(raylet) A worker died")
            print("Token authentication", file=sys.stderr)
            os.write(2, b"core_worker.cc")
            logging.getLogger("ray.data").warning("deprecated")
            log.warning("our own")
            print("progress", file=shown)
        print("after")
    finally:
        log.removeHandler(handler)
    assert capfd.readouterr() == ("after\n", "our own\nprogress\n")


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no video"):
        find_recordings(tmp_path)
