"""A model that looks for hands, live: where they are is in its records and drawn, what they cost is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import FakeEngine, FakeModel, FakeSource
from records import PREDICTION, frame, grey
from small_models import make_base
from test_hands import IMAGE, JUDGED, LEFT, RIGHT, SIZE_HW, FakeModels, hand_at
from test_video_sink import read_back

import engines
from engines.bench.stages import bench, format_lines
from engines.errors import ModelError
from engines.hands import HAND_FEATURES, models_installed
from engines.hands.crop import Floats
from engines.model.preprocess import shrinkable
from stream.commands.cli import main
from stream.frame import Frame, Points, Prediction
from stream.recognizer import Recognizer
from stream.runner import run
from stream.service.config import CameraConfig
from stream.service.worker.worker import Worker
from stream.sinks.overlay import OverlayState, draw
from stream.sinks.video import AnnotatedVideo, write_video
from stream.teaching.teach import teach_folder
from stream.wire.frames import PendingFrame
from stream.wire.messages import Message


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    """The hands that every tracker sees."""
    found = FakeModels()
    monkeypatch.setattr("engines.hands.open_models", lambda: found)
    monkeypatch.setattr("engines.hands.tracker.open_models", lambda: found)
    monkeypatch.setattr("stream.teaching.teach.models_installed", lambda: True)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "m.safetensors", HAND_FEATURES)


@pytest.fixture
def recognizer(scene: FakeModels, file: Path) -> Iterator[Recognizer]:
    with Recognizer.open(file, "eager", slots=2) as found:
        yield found


def only(recognizer: Recognizer, at: float, image: Floats = IMAGE) -> Prediction:
    [made] = [item for item in recognizer.push(image, at) if isinstance(item, Prediction)]
    return made


def shares(points: Floats, size_hw: tuple[int, int] = SIZE_HW) -> Points:
    return tuple((float(x) / size_hw[1], float(y) / size_hw[0]) for x, y, _ in points)


@pytest.mark.parametrize("size_hw", [SIZE_HW, (240, 640), (480, 320)])  # the network sees the middle of the others
def test_a_prediction_says_where_the_hands_are_in_the_picture(size_hw: tuple[int, int], recognizer: Recognizer,
                                                              scene: FakeModels) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    scene.hands = [LEFT, RIGHT]
    made = only(recognizer, 0.0, image)
    assert list(made.hands or ()) == ["left", "right"]
    for side, (points, _) in zip(("left", "right"), scene.hands, strict=True):
        np.testing.assert_allclose((made.hands or {})[side], shares(points, size_hw), atol=1e-5)
    said = json.loads(json.dumps(made.as_json()))["hands"]
    np.testing.assert_allclose(said["left"], shares(LEFT[0], size_hw), atol=1e-4)
    assert {"hands", "preprocess", "engine", "total"} <= set(made.latency_ms)
    scene.hands = [RIGHT]
    assert list(only(recognizer, 0.125, image).hands or ()) == ["right"]
    scene.hands = []
    assert only(recognizer, 0.25, image).as_json()["hands"] == {}


def test_other_models_say_nothing_of_hands() -> None:
    model = FakeModel()
    with Recognizer(model, FakeEngine(model)) as recognizer:  # type: ignore[arg-type]
        assert "hands" not in only(recognizer, 0.0).as_json()


def test_hands_that_are_never_in_view_cost_nothing_but_time(recognizer: Recognizer) -> None:
    made = [only(recognizer, k / 8) for k in range(12)]
    assert all(np.isfinite(score) for one in made for _, score in one.heads["action"].window)
    assert {json.dumps(one.as_json()["hands"]) for one in made} == {"{}"}


@pytest.mark.parametrize("seen", [True, False])
def test_a_run_in_which_no_hand_was_in_view_says_so(seen: bool, recognizer: Recognizer, scene: FakeModels,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    scene.hands = [LEFT] if seen else []
    run(FakeSource([Frame(IMAGE, k / 8, k, "cam") for k in range(9)]), recognizer)
    assert ("no hand was ever in view" in caplog.text) != seen


def test_hands_of_real_pictures_are_where_mediapipe_has_them(file: Path, shared: Path) -> None:
    if not models_installed():
        pytest.skip("needs the hand models")
    with Recognizer.open(file, "eager", slots=1) as recognizer:
        for k, (name, theirs) in enumerate(list(JUDGED["pictures"].items())[:4]):
            made = only(recognizer, 10.0 * k, cv2.imread(str(shared / "data/hands/images" / name)))
            for points in np.array(theirs["first"]):
                palm = np.linalg.norm(points[9] - points[0])
                assert min(np.linalg.norm(np.array(one) - points, axis=1).mean()
                           for one in (made.hands or {}).values()) < 0.1 * palm


def test_a_lesson_in_which_no_hand_is_in_view_does_without(scene: FakeModels, file: Path, tmp_path: Path) -> None:
    for label, value in (("dark", 40), ("light", 200)):
        (tmp_path / "all" / label).mkdir(parents=True)
        for i in range(3):
            write_video(tmp_path / "all" / label / f"{i}.mp4", ((t / 10, grey(48, 64, value + 5 * i))
                                                               for t in range(15)))
    taught = teach_folder(str(file), tmp_path / "all", tmp_path / "out.safetensors", engine="eager")
    assert scene.searches > 0
    assert not taught.contract.looks_for_hands
    assert taught.report.accuracy == 1


def test_a_service_that_uses_a_part_of_the_picture_tells_where_in_all_of_it(recognizer: Recognizer,
                                                                           scene: FakeModels) -> None:
    worker = Worker(recognizer)
    worker.configure([CameraConfig(name="a", crop=(0.25, 0.5, 0.5, 0.5))])
    scene.hands = [LEFT]  # in the part, which is as large as SIZE_HW
    large = np.zeros((2 * SIZE_HW[0], 2 * SIZE_HW[1], 3), np.uint8)
    sent = Message("imagezmq", "a", cv2.imencode(".jpg", large)[1].tobytes(), "jpeg")
    [record] = worker.process([PendingFrame("a", sent, 0, 0, 0.0, 0.0)])["records"]
    wanted = [(0.25 + 0.5 * x, 0.5 + 0.5 * y) for x, y in shares(LEFT[0])]
    np.testing.assert_allclose(record["hands"]["left"], wanted, atol=1e-3)


def test_the_picture_in_which_hands_are_looked_for_is_not_shrunk(file: Path, tmp_path: Path) -> None:
    plain, looking = (engines.load(path).contract for path in (make_base(tmp_path / "b.safetensors"), file))
    assert shrinkable((1080, 1920), plain) > 1
    assert shrinkable((1080, 1920), looking) == 1


def drawn(image: Floats, before: Floats) -> Floats:
    """Where an image has been drawn on in strong colours."""
    return (np.abs(image.astype(int) - before).max(2) > 60) & (np.ptp(image.astype(int), axis=2) > 60)


def test_hands_are_drawn_where_they_are_whatever_is_drawn_beside() -> None:
    state = OverlayState()
    looked = Prediction(**{**{name: getattr(PREDICTION, name) for name in PREDICTION.__slots__}, "hands": {
        "right": shares(hand_at(220, 140))}})
    image = grey(*SIZE_HW)
    state.update([PREDICTION], frame(1.0, image))
    without = draw(image, state)
    state.update([looked], frame(1.0, image))
    rows, columns = np.nonzero(drawn(draw(image, state), without))
    assert np.abs([columns.min() - 220 + 0.9 * 40, columns.max() - 220 - 0.55 * 40]).max() < 6
    assert np.abs([rows.min() - 140 + 1.95 * 40, rows.max() - 140]).max() < 6


def test_hands_are_drawn_in_their_place_of_a_picture_that_is_fitted_in(tmp_path: Path) -> None:
    hands = {"left": shares(hand_at(120, 70, 20), (120, 160))}
    looked = Prediction("0", 1, 0.1, True, {}, (), {}, 0, 0, hands)
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        video.write(frame(0.0, grey(240, 640)), [])
        video.write(frame(0.1, grey(120, 160)), [looked])
    rows, columns = np.nonzero(np.ptp(read_back(tmp_path / "out.avi")[0][1].astype(int), axis=2) > 60)
    # 160 x 120 is shown at twice its size, 160 pixels from the left
    assert np.abs([columns.min() - 160 - 2 * (120 - 18), rows.max() - 2 * 70]).max() < 10


def test_the_bench_says_what_hands_cost(scene: FakeModels, file: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    scene.hands = [LEFT]
    stages = bench(engines.load(file), "eager", steps=10)["stages_ms"]
    assert list(stages) == ["preprocess", "hands", "engine", "total"]
    assert stages["total"]["p50"] > stages["hands"]["p50"] > 0
    assert main(["bench", str(file), "--engine", "eager", "--steps", "10"]) == 0
    said = capsys.readouterr().out
    assert "\nhands " in said
    assert "gatestream bench hands" in said
    plain = bench(engines.load(make_base(tmp_path / "b.safetensors")), "eager", steps=10)
    assert "hands" not in "\n".join(format_lines(plain))


@pytest.mark.parametrize(("hands", "row"), [([], "frame with 0 hands"), ([LEFT], "frame with 1 hands"),
                                            ([LEFT, RIGHT], "frame with 2 hands")])
def test_the_bench_of_hands_has_the_frames_that_a_model_looks_at(hands: list[tuple[Floats, float]], row: str,
                                                                 scene: FakeModels, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    scene.hands, scene.detector_s, scene.landmarks_s = hands, [], []  # type: ignore[attr-defined]
    monkeypatch.setattr("engines.bench.hands._TimedModels", lambda: scene)
    assert main(["bench", "hands", "sim://gestures?seconds=4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == report["times"][row] == 4 * engines.load("base").contract.frame_rate
    assert report["ms"]["frame"]["mean"] == report["ms"][row]["mean"] > 0


@pytest.mark.parametrize("command", [["run", "sim://gestures?seconds=1", "--model"], ["bench"], ["ui", "--model"]])
def test_a_model_that_looks_for_hands_says_in_one_line_what_is_missing(command: list[str], scene: FakeModels,
                                                                       tmp_path: Path, file: Path,
                                                                       monkeypatch: pytest.MonkeyPatch,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    taught = tmp_path / "taught.safetensors"
    monkeypatch.undo()
    monkeypatch.setenv("GATESTREAM_HANDS", str(tmp_path))
    whole = engines.load(file)
    engines.model.file.save(taught, whole.contract, {name: value + name.startswith("pooled.")
                                                     for name, value in whole.tensors.items()})
    assert main([*command, str(taught), "--engine", "eager"]) == 2
    said = capsys.readouterr().err
    assert "palm_detection_lite.tflite" in said
    assert "pip install 'gatestream[hands]'" in said
    assert len(said.strip().splitlines()) == 1


def test_features_of_hands_that_are_not_these_are_refused(scene: FakeModels, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads 90 features of hands"):
        Recognizer.open(make_base(tmp_path / "m.safetensors", 90), "eager")
