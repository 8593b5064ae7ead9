"""A model for each camera: what each sees is recognised by its own, and models that are the same share an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq
from fakes import FakeEngine, FakeModel
from small_models import make_base
from test_service import Service as OwnService
from test_service import play, published, wait

import engines
from engines.errors import GatestreamError
from engines.model.file import save
from engines.synthetic import Simulation
from stream.clock import Tick
from stream.commands.cli import main
from stream.frame import Image
from stream.recognizer import Recognizer
from stream.service import service as service_module
from stream.service.config import CameraConfig, Config, PromotionConfig
from stream.service.service import Service
from stream.service.worker import protocol, worker
from stream.service.worker.models import Models
from stream.service.worker.worker import Worker
from stream.wire.frames import PendingFrame
from stream.wire.messages import Message

RATE = 15.0
PATIENCE_S = 60.0
USE = Tick(use=True)


def jpeg(blue: int) -> bytes:
    return cv2.imencode(".jpg", np.full((16, 16, 3), (blue, 0, 0), np.uint8))[1].tobytes()


def pending(camera: str, number: int, payload: bytes = jpeg(255)) -> PendingFrame:
    return PendingFrame(camera, Message("imagezmq", camera, payload, "jpeg"), number, 0, number / 10, 0.0, USE)


class Engines:
    """Two models of fakes for three cameras: `a` has the default, `b` and `c` another one with other labels."""

    def __init__(self) -> None:
        rule = {"open_above": 0.6, "min_duration_s": 0.1, "close_after_s": 0.0, "min_score": 0.0}
        models = [FakeModel(events=rule), FakeModel(heads={"gesture": ("cut", "glue", "none")}, events={
            **rule, "min_score": 0.99})]
        self.default, self.other = (Recognizer(model, FakeEngine(model)) for model in models)
        self.worker = Worker(self.default, dict.fromkeys("bc", self.other))

    def labels(self, done: dict[str, Any]) -> list[tuple[str, str]]:
        return [(one["camera"], one["heads"]["gesture"]["now"][0][0]) for one in done["records"]
                if one["type"] == "prediction"]


def test_a_batch_goes_to_the_models_of_its_cameras_and_comes_back_in_order() -> None:
    made = Engines()
    for k in range(3):
        frames = [pending(camera, k) for camera in "bac"]
        done = made.worker.process(frames, made.worker.prepare_async(frames))
        assert k == 0 or made.labels(done) == [("b", "cut"), ("a", "left"), ("c", "cut")]
    assert (made.default.engine.steps, made.other.engine.steps) == (3, 3)  # one step each, whatever the cameras
    broken = made.worker.process([pending("c", 3, b"no"), pending("a", 3), pending("b", 3)])
    assert made.labels(broken) == [("a", "left"), ("b", "cut")]
    assert [error[:2] for error in broken["errors"]] == [["c", 3]]
    assert (made.default.cameras, sorted(made.other.cameras)) == (("a",), ["b", "c"])
    made.worker.leave("b")
    assert made.other.cameras == ("c",)
    assert {one["camera"] for one in made.worker.stop()["records"] if one["type"] == "event"} <= {"a", "c"}
    assert made.default.cameras == made.other.cameras == ()


def test_what_is_warmed_up_is_the_camera_s_own_model() -> None:
    made, alone = Engines(), Engines()
    assert made.worker.warm([pending(camera, 0) for camera in "abc"]) == {"records": []}
    assert (made.default.engine.steps, made.other.engine.steps) == (1, 1)
    after, before = (one.worker.process([pending("b", 1)])["records"][0] for one in (made, alone))
    assert after["heads"]["gesture"]["now"][0][1] > before["heads"]["gesture"]["now"][0][1]


def test_a_camera_s_rule_is_its_model_s_but_for_what_it_says_itself() -> None:
    made = Engines()
    made.worker.configure([CameraConfig(name="a", open_above=0.9), CameraConfig(name="b", open_above=0.8),
                           CameraConfig(name="c", min_score=0.5)])
    for k in range(2):
        made.worker.process([pending(camera, k) for camera in "abc"])
    rules = {camera: recognizer._streams[camera].trackers["gesture"].rule
             for camera, recognizer in (("a", made.default), ("b", made.other), ("c", made.other))}
    assert {camera: (rule.open_above, rule.min_score) for camera, rule in rules.items()} == {
        "a": (0.9, 0.0), "b": (0.8, 0.99), "c": (0.6, 0.5)}


def test_models_that_are_the_same_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    built: list[tuple[str, int]] = []

    def load(path: str) -> FakeModel:
        loaded.append(path)
        return FakeModel(name=path, frame_rate=5.0 if path == "one" else 10.0)

    def build(model: FakeModel, engine: str, slots: int) -> FakeEngine:
        built.append((model.contract.name, slots))
        return FakeEngine(model, slots)

    monkeypatch.setattr(worker.engines, "load", load)
    monkeypatch.setattr(worker.engines, "compile", build)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as receiver:
        receiver.linger, receiver.rcvtimeo = 0, round(1000 * PATIENCE_S)
        port = receiver.bind_to_random_port("tcp://127.0.0.1")
        thread = threading.Thread(target=worker.serve, kwargs={
            "address": f"tcp://127.0.0.1:{port}", "model": "one", "engine": "auto", "slots": 7, "promotion": None,
            "own": {"a": "two", "b": "two", "c": "three"}, "expected": None, "known": None})
        thread.start()
        kind = protocol.ALIVE
        while kind == protocol.ALIVE:
            identity, kind, body = receiver.recv_multipart()
        receiver.send_multipart([identity, *protocol.encode(protocol.STOP, {})])
        thread.join(PATIENCE_S)
    assert kind == protocol.READY
    ready = json.loads(body)
    assert ready["engine"] == "one, fake f32; two, fake f32; three, fake f32"
    assert ready["clock"] == [5.0, 1.0, {camera: [10.0, 1.0] for camera in "abc"}]
    assert sorted(loaded) == ["one", "three", "two"]
    assert built == [("one", 7), ("two", 2), ("three", 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model under other names: with the same bytes, with labels of its own, and outside these folders."""
    folder, bundled = tmp_path_factory.mktemp("models"), engines.load("gesture")
    weights = bundled.tensors
    labels = tuple(label if label == bundled.contract.background else f"my {label}"
                   for label in bundled.contract.heads["gesture"])
    mine = bundled.contract.model_copy(update={"name": "mine", "heads": {"gesture": labels}})
    paths = {name: folder / f"{name}.safetensors" for name in ("same", "mine", "twin", "other")}
    assert bundled.path is not None
    paths["same"].write_bytes(bundled.path.read_bytes())
    save(paths["mine"], mine, weights)
    paths["twin"].write_bytes(paths["mine"].read_bytes())
    save(paths["other"], mine.model_copy(update={"name": "other", "frame_rate": 10.0}), weights)
    paths["base"] = make_base(folder / "base.safetensors")
    (folder / "elsewhere").mkdir()
    paths["elsewhere"] = folder / "elsewhere" / "own.safetensors"
    save(paths["elsewhere"], mine.model_copy(update={"name": "elsewhere"}), weights)
    return paths


def config(files: dict[str, Path], cameras: dict[str, str | None], **keys: Any) -> Config:
    return Config.model_validate({"camera": [
        {"name": name, "model": model and str(files.get(model, model))} for name, model in cameras.items()], **keys})


@pytest.mark.parametrize(("cameras", "own", "distinct"), [
    ({}, {}, ["gesture"]), ({"a": None, "b": "gesture", "c": "same"}, {}, ["gesture"]),
    ({"a": "mine", "b": None, "c": "twin"}, {"a": "mine", "c": "mine"}, ["gesture", "mine"]),
    ({"a": "other", "b": "mine"}, {"a": "other", "b": "mine"}, ["gesture", "other", "mine"])])
def test_models_are_told_apart_by_what_is_in_them(files: dict[str, Path], cameras: dict[str, str | None],
                                                  own: dict[str, str], distinct: list[str]) -> None:
    models = Models.load(config(files, cameras))
    assert {camera: model.contract.name for camera, model in models.own.items()} == own
    assert [model.contract.name for model in models.distinct] == distinct
    assert len({id(model) for model in models.own.values()}) == len(distinct) - 1


@pytest.mark.parametrize(("model", "engine", "says"), [
    ("gestures", "auto", "camera a: model 'gestures', which is no bundled model and no file"),
    ("base", "auto", "camera a: base, which knows no action yet"),
    ("mine", "twin", "built for one model, and camera a with another")])
def test_a_wrong_model_of_a_camera_is_told_at_the_start_and_by_check(
        files: dict[str, Path], model: str, engine: str, says: str, tmp_path: Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    made = config(files, {"a": model}, engine=str(files.get(engine, engine)))
    with pytest.raises(GatestreamError, match=says):
        Models.load(made)
    with pytest.raises(GatestreamError, match=says):
        Service(made)
    path = tmp_path / "cameras.toml"
    path.write_text(f'engine = "{made.engine}"\n[[camera]]\nname = "a"\nmodel = "{made.camera[0].model}"\n')
    assert main(["serve", str(path), "--check"]) == 2
    assert says in capfd.readouterr().err
    path.write_text('model = "gestures"\n')
    assert main(["serve", str(path), "--check"]) == 2


class Candidates:
    """A service whose processes only sleep; `requests` are those that it started them with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, made: Config) -> None:
        self.requests: list[dict[str, Any]] = []
        monkeypatch.setattr(service_module, "start_process", self._start)
        self.service = Service(made)
        self.service.receiver._calls.get()()  # what it was given at the start
        self.cameras: list[list[str]] = []  # that the receiver was given, each time
        monkeypatch.setattr(self.service.receiver, "call_soon", lambda call: call())
        monkeypatch.setattr(self.service.receiver, "configure", lambda got: self.cameras.append(
            [camera.name for camera in got.camera]))

    def _start(self, module: str, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        self.requests.append(request)
        return subprocess.Popen(["sleep", "60"])

    def reload(self, made: Config) -> None:
        self.service.reload(made)
        self.service.supervise()

    @property
    def pid(self) -> int | None:
        """Of the process with the models that are made ready."""
        candidate = self.service._candidate
        return candidate and candidate[1].process and candidate[1].process.pid

    def go_live(self) -> None:
        """What was started last gets ready."""
        assert self.pid is not None
        self.service.receiver.worker.pid = self.pid
        self.service.supervise()

    def model(self, camera: str) -> str:
        return self.service._models.of(camera).contract.name


BASE = {"receive": {"bind": ["tcp://127.0.0.1:*"]}, "health": {"bind": None}}


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], tmp_path: Path) -> Iterator[Candidates]:
    recording = tmp_path / "gate.png"
    cv2.imwrite(str(recording), np.zeros((48, 64, 3), np.uint8))
    made = Candidates(monkeypatch, config(files, {"a": None, "b": "mine"}, models=[files["mine"].parent], gate={
        "recording": recording}, **BASE))
    with made.service:
        made.service.receiver.worker.events = [{"type": "event"}]
        made.service.receiver.worker.was_ready = True
        yield made


def test_another_model_of_a_camera_is_made_ready_beside_the_running_one(candidates: Candidates, files: dict[str, Path]
                                                                        ) -> None:
    assert list(candidates.requests[0]["own"]) == ["b"]
    candidates.reload(config(files, {"a": None, "b": "mine", "c": None}, **BASE))
    assert len(candidates.requests) == 1  # a further camera of the default model needs nothing
    changed = config(files, {"a": "other", "b": "twin", "c": None}, **BASE)
    candidates.reload(changed)
    [_, request] = candidates.requests
    assert set(request["own"]) == {"a", "b"}
    assert (request["promotion"], request["expected"], request["known"]) == (None, None, [{"type": "event"}])
    assert (candidates.model("a"), candidates.model("b")) == ("gesture", "mine")
    candidates.reload(changed)
    assert len(candidates.requests) == 2  # it is being made ready
    candidates.go_live()
    assert (candidates.model("a"), candidates.model("b"), candidates.model("c")) == ("other", "mine", "gesture")


def test_a_change_that_is_taken_back_does_not_come(candidates: Candidates, files: dict[str, Path]) -> None:
    candidates.reload(config(files, {"a": "other", "b": "mine"}, **BASE))
    pid = candidates.pid
    assert pid is not None
    candidates.reload(config(files, {"a": None, "b": "mine"}, **BASE))
    assert candidates.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_new_camera_with_a_model_of_its_own_waits_for_it(candidates: Candidates, files: dict[str, Path]) -> None:
    candidates.reload(config(files, {"a": None, "b": "mine", "c": "other", "d": None}, **BASE))
    assert candidates.cameras == [["a", "b", "d"]]
    assert candidates.service.state()["faults"]["camera c"] == "it waits for its model"
    candidates.go_live()
    assert candidates.cameras == [["a", "b", "d"], ["a", "b", "c", "d"]]
    candidates.reload(config(files, {"a": None, "b": "mine", "c": "other", "e": "gesture"}, **BASE))
    assert candidates.cameras[-1] == ["a", "b", "c", "e"]  # the default is there


@pytest.mark.parametrize(("model", "says"), [("elsewhere", ""), ("/nowhere", "camera c: model '/nowhere'"),
                                             ("base", "camera c: base, which knows no action yet")])
def test_a_camera_whose_model_may_not_be_taken_costs_itself(
        candidates: Candidates, files: dict[str, Path], model: str, says: str,
        caplog: pytest.LogCaptureFixture) -> None:
    candidates.service.config = candidates.service.config.model_copy(update={"models": ()})
    candidates.reload(config(files, {"a": None, "c": model, "b": "mine", "d": None}, **BASE))
    assert len(candidates.requests) == 1
    assert candidates.cameras == [["a", "b", "d"]]
    assert (says or "in the folders that `models` named at the start") in caplog.text


def test_the_gate_is_for_the_default_model_only(candidates: Candidates, files: dict[str, Path],
                                                caplog: pytest.LogCaptureFixture) -> None:
    candidates.reload(config(files, {"b": "mine"}, model=str(files["other"]), **BASE))
    assert candidates.requests[-1]["promotion"] is not None
    assert candidates.requests[-1]["expected"] == [{"type": "event"}]
    gone = PromotionConfig.model_construct(recording=Path("gone"))
    candidates.service.config = candidates.service.config.model_copy(update={"gate": gone})
    candidates.reload(config(files, {"b": "gesture"}, **BASE))
    assert "is not there" not in caplog.text
    assert candidates.requests[-1]["own"] == {}
    candidates.reload(config(files, {}, model=str(files["mine"]), **BASE))
    assert "the recording gone is not there" in caplog.text


@pytest.fixture(scope="module")
def gestures() -> list[Image]:
    """Twenty seconds in which a rendered hand draws at least three gestures."""
    room = Simulation(3, (96, 128), RATE, idle_s=(1.5, 2.5))
    return [room.frame(k) for k in range(round(20 * RATE))]


def test_cameras_of_one_service_with_two_models(files: dict[str, Path], gestures: list[Image], tmp_path: Path) -> None:
    cameras = f'[[camera]]\nname = "bench"\nmodel = "{files["mine"]}"\nlost_after_s = 600\n'
    cameras += '[[camera]]\nname = "desk"\nlost_after_s = 600\n'
    own = OwnService(tmp_path, after=cameras, before=f'models = ["{files["mine"].parent}"]', pace_ms=1000,
                     staleness_ms=60_000, max_frames_per_s=10_000)

    def check(start_at: float, prefix: str) -> list[dict[str, Any]]:
        """Shows both the same; what was published of it."""
        for sender in senders:
            play(sender, gestures, start_at)
        said = published(sub)
        closed = [one for one in said if one["type"] == "event" and not one["open"] and one["started_at"] > start_at]
        desk, bench = ([(one["label"], round(one["started_at"], 2)) for one in closed if one["camera"] == name]
                       for name in ("desk", "bench"))
        assert len(desk) >= 2
        assert bench == [(label if label == "unknown" else prefix + label, at) for label, at in desk]
        return said

    try:
        with own.subscriber() as sub, own.sender("desk") as desk, own.sender("bench") as bench:
            senders = (desk, bench)
            assert own.ready()["engine"] == "gesture, openvino f32; mine, openvino f32"
            check(time.time() - 50, "my ")
            models = {name: camera["model"] for name, camera in own.ready()["cameras"].items()}
            assert models == {"desk": "gesture", "bench": "mine"}
            children = Path(f"/proc/{own.process.pid}/task/{own.process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            wait(lambda: (state := own.state()) is None or state["engine_restarts"] == 1)
            own.ready()
            again_at = time.time() - 30
            said = check(again_at, "my ")  # both are back
            gaps = [(one["camera"], one["action"]) for one in said if one["type"] == "gap"]
            assert {("desk", "engine restarted"), ("bench", "engine restarted")} <= set(gaps)
            own.reload(lambda text: text.replace(str(files["mine"]), "gesture"))
            wait(lambda: own.says("model gesture is live"), own.process)
            said = check(again_at + len(gestures) / RATE, "")
            assert [one for one in said if one["type"] == "gap"] == []
            state = own.ready()
            assert (state["engine"], state["engine_restarts"]) == ("gesture, openvino f32", 1)
    finally:
        own.end()
    assert own.process.returncode == 0
