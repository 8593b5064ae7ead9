"""What the page keeps of what it was shown, and what it does with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")

from fastapi import FastAPI

from demo import trainer as module
from demo.clip_store import ClipStore
from demo.teach_api import teach_router
from demo.trainer import Trainer
from engines.errors import DatasetError, ModelError, SourceError, UsageError
from stream.frame import Frame, Image
from stream.sinks.video import write_video
from stream.sources import open_source


def pictures(seconds: float, size_hw: tuple[int, int] = (48, 64)) -> Iterator[tuple[float, Image]]:
    """At ten a second, each brighter than the one before."""
    for k in range(round(10 * seconds) + 1):
        yield 1e9 + k / 10, np.full((*size_hw, 3), min(255, 8 * k), np.uint8)


def seen(path: Path) -> list[tuple[float, float]]:
    """Times and brightness of a video's pictures."""
    with open_source(str(path), policy="every") as source:
        return [(frame.captured_at, float(frame.image_bgr.mean())) for frame in source.frames()
                if isinstance(frame, Frame)]


def test_recordings_are_kept_cut_and_deleted(tmp_path: Path) -> None:
    store = ClipStore(tmp_path / "new" / "lessons")
    assert store.clips() == []
    for label in ("wave", "wave", "  Kaffee   kochen "):
        store.add(label, pictures(3.0))
    assert [(clip.label, clip.number) for clip in store.clips()] == [("Kaffee kochen", 1), ("wave", 1), ("wave", 2)]
    assert store.clips()[1].whole_s == pytest.approx(3.0, abs=0.15)
    store.trim("wave", 2, 1.0, 2.0)
    times, brightness = zip(*seen(store.find("wave", 2)), strict=True)
    assert times[-1] == pytest.approx(1.0, abs=0.01)
    assert brightness[0] == pytest.approx(80, abs=7)
    assert store.clips()[2].seconds < store.clips()[2].whole_s
    store.trim("wave", 2, 0.0, 3.0)  # nothing is lost by a cut
    assert len(seen(store.find("wave", 2))) == 31
    store.remove("wave", 1)
    store.add("wave", pictures(1.0))
    assert [(clip.label, clip.number) for clip in store.clips()] == [("Kaffee kochen", 1), ("wave", 2), ("wave", 3)]
    store.remove("Kaffee kochen", 1)
    assert [path.name for path in (tmp_path / "new" / "lessons" / "clips").iterdir()] == ["wave"]


def test_pictures_are_kept_small(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    video = tmp_path / "large.mp4"
    write_video(video, pictures(1.0, (480, 640)))
    store.add_file("wave", video)
    with open_source(str(store.find("wave", 1))) as source:
        assert next(item for item in source.frames() if isinstance(item, Frame)).image_bgr.shape == (240, 320, 3)


@pytest.mark.parametrize(("label", "seconds", "says"), [
    ("", 2, "the name ''"), ("../up", 2, "the name '../up'"), ("a/b", 2, "the name"), ("x" * 41, 2, "up to 40"),
    (".hidden", 2, "the name"), ("wave", 0.3, "of 0.3 s"), ("wave", 601, "more than 600 s")])
def test_what_cannot_be_kept_leaves_nothing(label: str, seconds: float, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        ClipStore(tmp_path).add(label, pictures(seconds, (2, 2)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_not_there(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    for call in (lambda: store.find("wave", 1), lambda: store.remove("wave", 1),
                 lambda: store.trim("wave", 1, 0, 1), lambda: store.find("../..", 1)):
        with pytest.raises(UsageError):
            call()
    (tmp_path / "wrong.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError):
        store.add_file("wave", tmp_path / "wrong.mp4")


def wait(trainer: Trainer) -> None:
    trainer._thread.join(60)
    assert not trainer.state()["busy"]


class TestTrainer:
    def test_a_model_that_cannot_be_used_does_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        used: list[str] = []

        def use(model: str) -> None:
            used.append(model)
            if len(used) == 2:
                raise DatasetError("this one", "another one", "learn again")

        class Outcome:
            def as_json(self) -> dict[str, int]:
                return {"recordings": len(used)}

        monkeypatch.setattr(module, "teach_folder", lambda model, folder, out, **_: out.write_bytes(b"1") and Outcome())
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", use)
        models = [trainer.model]
        for work in (trainer.train, trainer.train, trainer.train, trainer.undo, trainer.undo):
            work()
            wait(trainer)
            models.append(Path(trainer.model).name)
            assert (trainer.state()["error"] != "") == (len(models) == 3)
        assert models == ["gesture", "1.safetensors", "1.safetensors", "2.safetensors", "1.safetensors", "gesture"]
        assert [Path(model).name for model in used] == [
            "1.safetensors", "2.safetensors", "2.safetensors", "1.safetensors", "gesture"]
        with pytest.raises(UsageError, match="nothing learnt"):
            trainer.undo()

    def test_a_learnt_model_that_does_not_open_is_passed_over(self, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
        def learn(model: str, folder: Path, out: Path, **_: Any) -> SimpleNamespace:
            out.write_bytes(b"new")
            return SimpleNamespace(as_json=dict)

        def open_model(model: str) -> str:
            if model != "gesture" and Path(model).read_bytes() == b"spoilt":
                raise ModelError(f"{model}, spoilt", "a model", "learn again")
            return model

        monkeypatch.setattr(module, "teach_folder", learn)
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None)
        folder = trainer._folder
        folder.mkdir(parents=True)
        for name, what in (("1", b"good"), ("2", b"spoilt"), ("3", b"spoilt")):
            (folder / f"{name}.safetensors").write_bytes(what)
        assert trainer.open_newest(open_model) == trainer.model == str(folder / "1.safetensors")
        assert trainer.state()["versions"] == 1
        trainer.train()
        wait(trainer)
        assert trainer.model == str(folder / "4.safetensors")
        assert (folder / "3.safetensors").read_bytes() == b"spoilt"
        for path in folder.iterdir():
            path.write_bytes(b"spoilt")
        assert Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None).open_newest(open_model) == "gesture"

    def test_one_wish_at_a_time_and_faults_are_told(self, tmp_path: Path) -> None:
        go = threading.Event()
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None)
        trainer._start_thread(lambda: go.wait(10) and None)
        with pytest.raises(UsageError, match="one at a time"):
            trainer.train()
        go.set()
        wait(trainer)
        trainer.train()
        wait(trainer)
        assert "no folder of a label" in trainer.state()["error"]
        trainer._start_thread(lambda: [][0])
        wait(trainer)
        assert "the server's log says why" in trainer.state()["error"]
        assert trainer.state()["versions"] == 0


class Client:
    """A browser whose page is at `origin`."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self.origin = app, "http://localhost:7860"

    def get(self, path: str) -> httpx.Response:
        return self._asked("GET", path)

    def post(self, path: str, **said: Any) -> httpx.Response:
        return self._asked("POST", path, **said)

    def _asked(self, method: str, path: str, **said: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://localhost:7860",
                                         headers={"origin": self.origin}) as client:
                return await client.request(method, path, **said)

        return asyncio.run(ask())


@pytest.fixture
def client(tmp_path: Path) -> Client:
    app = FastAPI()
    app.include_router(teach_router(Trainer(ClipStore(tmp_path / "lessons"), "gesture", "auto", lambda model: None)))
    return Client(app)


def test_a_page_uploads_cuts_and_deletes(client: Client, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    write_video(video, pictures(2.0))
    said = client.post("/teach/clips", params={"label": "wave"}, content=video.read_bytes()).json()
    assert [(clip["label"], clip["number"]) for clip in said["clips"]] == [("wave", 1)]
    which = {"label": "wave", "number": 1}
    assert client.get("/teach/clips/wave/1.mp4").content[4:8] == b"ftyp"
    assert client.post("/teach/cut", json={**which, "from": 0.5, "to": 1.5}).json()["clips"][0]["seconds"] < 1.5
    assert client.post("/teach/remove", json=which).json()["clips"] == []
    assert client.post("/teach/remove", json=which).status_code == 400
    assert client.get("/teach/clips/wave/1.mp4").status_code == 404
    assert client.get("/teach/model").status_code == 404
    said = client.post("/teach/clips", params={"label": "wave"}, content=b"no video").json()
    assert said["error"].startswith("this file: ")
    assert "error" in client.post("/teach/undo").json()
    assert client.post("/teach/cut", json={"label": "wave"}).status_code == 422


@pytest.mark.parametrize("path", ["clips?label=a", "cut", "remove", "learn", "undo"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", ""])
def test_other_sites_pages_may_not_teach(path: str, origin: str, client: Client) -> None:
    client.origin = origin
    assert client.post(f"/teach/{path}", json={}).status_code == 403
    assert client.get("/teach/state").status_code == 200
