"""Two hands: the palm detector's outputs, squares around hands, slots, numbers for lessons, and the models."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from engines.errors import EngineError, FrameError, UsageError
from engines.hands import HAND_FEATURES, HandModels, Hands, HandTracker, hand_features, open_models
from engines.hands.crop import Floats, Square, square_of_landmarks, square_of_palm, whole_image
from engines.hands.features import EACH, HOLD_FRAMES, feature_names
from engines.hands.models import FOLDER_VARIABLE, LANDMARK_FILE, PALM_FILE, Landmarks, find_models
from engines.hands.palms import INPUT_PIXELS, POINTS, Palm, anchors, decode_palms, merge_palms
from stream.sinks.overlay import draw_hands

# A right hand, upright, seen from its back: x right, y down, wrist to middle knuckle is 1.
SHAPE = np.array([[0, 0], [-.35, -.2], [-.6, -.5], [-.75, -.75], [-.9, -.95], [-.3, -.95], [-.35, -1.35], [-.37, -1.6],
                  [-.38, -1.8], [0, -1], [0, -1.45], [0, -1.7], [0, -1.95], [.25, -.95], [.27, -1.35], [.28, -1.6],
                  [.29, -1.8], [.45, -.8], [.5, -1.1], [.53, -1.3], [.55, -1.45]], np.float32)
SIZE_HW = (240, 320)
JUDGED = json.loads((Path(__file__).parent / "data/mediapipe_hands.json").read_text())


def hand_at(x: float, y: float, palm: float = 40.0, angle: float = 0.0) -> Floats:
    """Landmarks [21, 3] of SHAPE, its wrist at (x, y), turned clockwise by the angle."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = SHAPE @ turn.T * palm + (x, y)
    return np.concatenate([points, np.zeros((21, 1))], 1).astype(np.float32)


class FakeModels:
    """Sees the hands of a scene: `hands` holds (landmarks, right) of this frame."""

    def __init__(self) -> None:
        self.hands: list[tuple[Floats, float]] = []
        self.searches = 0

    def detect(self, image_bgr: Floats) -> tuple[Square, list[Palm]]:
        self.searches += 1
        square = whole_image(image_bgr.shape[:2])
        scale, corner = INPUT_PIXELS / square.side, np.array([square.x, square.y]) - square.side / 2
        palms = []
        for points, _ in self.hands:
            seven = ((points[list(POINTS), :2] - corner) * scale).astype(np.float32)
            palms.append(Palm(0.9, np.concatenate([seven.min(0), seven.max(0)]), seven))
        return square, palms

    def landmarks(self, _: Floats, square: Square) -> Landmarks:
        def far(points: Floats) -> float:
            return float(np.hypot(*(points[:, :2].mean(0) - (square.x, square.y))))

        near = min(self.hands, key=lambda hand: far(hand[0]), default=None)
        if near is None or far(near[0]) > square.side / 2:
            return Landmarks(0.0, 0.5, np.zeros((21, 3), np.float32))
        return Landmarks(0.9, near[1], near[0])


@pytest.fixture
def scene() -> FakeModels:
    return FakeModels()


@pytest.fixture
def tracker(scene: FakeModels) -> HandTracker:
    return HandTracker(scene, detect_every=5)  # type: ignore[arg-type]


IMAGE = np.zeros((*SIZE_HW, 3), np.uint8)
LEFT, RIGHT = (hand_at(80, 200), 0.1), (hand_at(240, 200), 0.9)


def test_anchors_cover_the_detectors_input() -> None:
    assert anchors().shape == (2016, 2)
    assert np.unique(anchors()[:1152], axis=0).shape == (24 * 24, 2)
    assert np.unique(anchors()[1152:], axis=0).shape == (12 * 12, 2)
    np.testing.assert_array_equal(anchors()[[0, 1, 2, 48, 1152, 1158, 1152 + 72]],
                                  [[4, 4], [4, 4], [12, 4], [4, 12], [8, 8], [24, 8], [8, 24]])


def test_a_palm_is_read_from_its_anchor() -> None:
    boxes, scores = np.zeros((2016, 18), np.float32), np.full(2016, -20, np.float32)
    boxes[700] = [3, -2, 40, 30, *range(14)]
    scores[700] = 2.0
    palm, = decode_palms(boxes, scores)
    x, y = anchors()[700] + (3, -2)
    np.testing.assert_allclose(palm.box_xyxy, [x - 20, y - 15, x + 20, y + 15])
    np.testing.assert_allclose(palm.points, np.arange(14).reshape(7, 2) + anchors()[700])
    assert palm.score == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_no_palms(bad: float) -> None:
    boxes, scores = np.full((2016, 18), bad, np.float32), np.full(2016, bad, np.float32)
    scores[:9] = 5
    assert decode_palms(boxes, scores) == []


def test_overlapping_palms_are_averaged_by_their_scores() -> None:
    scores = np.array([0.9, 0.8, 0.6], np.float32)
    boxes = np.array([[0, 0, 10, 10], [50, 0, 60, 10], [3, 0, 13, 10]], np.float32)  # the last is one with the first
    points = np.stack([np.full((7, 2), value) for value in (0, 50, 3)]).astype(np.float32)
    first, second = merge_palms(scores, boxes, points)
    np.testing.assert_allclose(first.box_xyxy, [1.2, 0, 11.2, 10], rtol=1e-6)
    np.testing.assert_allclose(first.points, np.full((7, 2), 1.2), rtol=1e-6)
    assert (first.score, second.score) == (pytest.approx(0.9), pytest.approx(0.8))
    empty = np.zeros((2, 4), np.float32)
    assert len(merge_palms(scores[:2], empty, points[:2])) == 2, "boxes without area"


@pytest.mark.parametrize("square", [Square(100, 80, 60), Square(-10, 300, 224, 2.0), Square(5, 5, 999, -3.1)])
def test_points_go_into_a_square_and_back(square: Square) -> None:
    points = np.random.default_rng(0).uniform(0, 224, (21, 3)).astype(np.float32)
    back = square.to_image(points, 224)
    turn = np.linalg.inv(square.matrix(224)[:, :2])
    np.testing.assert_allclose((back[:, :2] - square.matrix(224)[:, 2]) @ turn.T, points[:, :2], atol=1e-2)
    middle = square.to_image(np.full((1, 2), 112, np.float32), 224)[0]
    np.testing.assert_allclose(middle, (square.x, square.y), atol=1e-3)
    np.testing.assert_allclose(back[:, 2], points[:, 2] * square.side / 224, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0, 3.0])
@pytest.mark.parametrize("find", [
    lambda hand: square_of_landmarks(hand[:, :2]),
    lambda hand: square_of_palm(np.concatenate([hand[list(POINTS), :2].min(0), hand[list(POINTS), :2].max(0)]),
                                hand[0, :2], hand[9, :2])], ids=["landmarks", "palm"])
def test_a_square_turns_the_hand_upright_and_holds_all_of_it(angle: float, find: Callable[[Floats], Square]) -> None:
    hand = hand_at(160, 120, angle=angle)
    square = find(hand)
    inside = (hand[:, :2] - square.matrix(1)[:, 2]) @ np.linalg.inv(square.matrix(1)[:, :2]).T
    assert inside.min() > 0
    assert inside.max() < 1
    assert math.cos(square.angle - angle) > 0.99


def test_a_cut_out_is_upright_and_rgb() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 70:90] = (255, 0, 0)  # blue, right of the centre
    cut = Square(50, 50, 100, math.pi / 2).cut(image, 50)  # what points right in the image points up
    assert cut[10, 25].tolist() == [0, 0, 255]
    assert cut[40].max() == 0
    edge = np.full((20, 20, 3), 200, np.uint8)
    assert Square(0, 0, 20).cut(edge, 10)[0, 0].tolist() == [200] * 3
    assert Square(0, 0, 20).cut(edge, 10, repeat_edge=False)[0, 0].tolist() == [0] * 3


@pytest.mark.parametrize("word", [0.1, 0.9])
def test_hands_take_the_slot_of_their_side(word: float, tracker: HandTracker, scene: FakeModels) -> None:
    scene.hands = [(RIGHT[0], word), (LEFT[0], 1 - word)]  # whatever the model says
    hands = tracker.step(IMAGE)
    assert (hands.presence > 0).all()
    np.testing.assert_allclose(hands.landmarks[0] * (320, 240, 320), LEFT[0], atol=1e-3)
    np.testing.assert_allclose(hands.landmarks[1] * (320, 240, 320), RIGHT[0], atol=1e-3)
    assert hands.aspect == pytest.approx(320 / 240)


def test_hands_keep_their_slots_while_they_change_sides_and_the_model_its_word(tracker: HandTracker,
                                                                              scene: FakeModels) -> None:
    for k in range(33):
        x, y = 60 + 6 * k, 150 + 60 * math.sin(math.pi * k / 32)
        scene.hands = [(hand_at(x, y), 0.1 + 0.8 * (k > 16)), (hand_at(320 - x, 300 - y), 0.9 - 0.8 * (k > 16))]
        hands = tracker.step(IMAGE)
        assert hands.landmarks[0, 0, 0] == pytest.approx(x / 320, abs=1e-4), f"swapped at {k}"
        assert hands.landmarks[1, 0, 0] == pytest.approx(1 - x / 320, abs=1e-4)


@pytest.mark.parametrize(("places", "slots"), [
    ((80,), (0,)), ((240,), (1,)),  # alone: its half of the image
    ((140, 60), (0, 1, 0)), ((200, 280), (1, 0, 1)),  # then another comes in beside it
    ((140, 280), (0, 0, 1)), ((200, 60), (1, 1, 0))])
def test_slots_are_in_order_when_a_hand_comes_into_view(places: tuple[int, ...], slots: tuple[int, ...],
                                                        tracker: HandTracker, scene: FakeModels) -> None:
    for k, place in enumerate(places):
        scene.hands = [*scene.hands, (hand_at(place, 200), 0.5)]
        for _ in range(6):
            hands = tracker.step(IMAGE)
        wanted = slots[0] if k == 0 else slots[1:]
        for slot, at in zip(np.atleast_1d(wanted), places[:k + 1], strict=True):
            assert hands.landmarks[slot, 0, 0] == pytest.approx(at / 320, abs=1e-4)


def test_a_lost_hand_comes_back_to_its_slot(tracker: HandTracker, scene: FakeModels) -> None:
    scene.hands = [LEFT, RIGHT]
    tracker.step(IMAGE)
    scene.hands = []
    lost = tracker.step(IMAGE)
    assert lost.presence.tolist() == [0, 0]
    assert lost.unseen.tolist() == [1, 1]
    scene.hands = [(LEFT[0], 0.6)]  # where the left one was, though the model doubts it
    seen = [tracker.step(IMAGE).presence > 0 for _ in range(6)][-1]
    assert seen.tolist() == [True, False]


def test_the_detector_runs_only_while_a_hand_is_missing(tracker: HandTracker, scene: FakeModels) -> None:
    def searches(frames: int) -> int:
        before = scene.searches
        for _ in range(frames):
            tracker.step(IMAGE)
        return scene.searches - before

    assert searches(10) == 2, "nothing in view: one frame in five"
    scene.hands = [LEFT]
    assert searches(10) == 2
    scene.hands = [LEFT, RIGHT]
    searches(5)
    assert searches(20) == 0, "two hands are followed"
    scene.hands = [LEFT]
    assert searches(1) == 1, "a hand is lost"
    assert searches(10) == 2


@pytest.mark.parametrize(("hands", "searches"), [([], 6), ([LEFT], 6), ([LEFT, RIGHT], 1)])
def test_searches_are_few_and_counted_in_frames(hands: list[tuple[Floats, float]], searches: int,
                                                scene: FakeModels) -> None:
    live, scene.hands = HandTracker(scene), hands  # type: ignore[arg-type]
    for _ in range(12):
        live.step(IMAGE)
    assert scene.searches == searches


def test_two_slots_never_follow_one_hand(tracker: HandTracker, scene: FakeModels) -> None:
    for k in range(20):  # the left hand goes behind the right one and does not come back
        scene.hands = [(hand_at(120 + 6 * k, 200), 0.1), RIGHT] if k < 19 else [RIGHT]
        hands = tracker.step(IMAGE)
    assert np.count_nonzero(tracker.step(IMAGE).presence) == 1
    assert hands.presence.min() == 0


def test_a_reset_tracker_is_a_new_one_and_a_copy_goes_on_alone(tracker: HandTracker, scene: FakeModels) -> None:
    scene.hands = [LEFT, RIGHT]
    first = tracker.step(IMAGE)
    other = tracker.copy()
    tracker.reset()
    scene.hands = [RIGHT]
    assert tracker.step(IMAGE).unseen.tolist() == [-1, 0]
    assert other.step(IMAGE).unseen.tolist() == [1, 0]
    tracker.reset()
    scene.hands = [LEFT, RIGHT]
    for one, two in zip(hand_features(tracker.step(IMAGE)), hand_features(first), strict=True):
        assert one == two


def test_what_is_no_image_is_refused_and_changes_nothing(tracker: HandTracker, scene: FakeModels) -> None:
    scene.hands = [LEFT]
    tracker.step(IMAGE)
    with pytest.raises(FrameError):
        tracker.step(np.zeros((0, 5, 3), np.uint8))
    assert tracker.step(IMAGE).unseen.tolist() == [0, -1]


def features_of(points: Floats, size_hw: tuple[int, int] = SIZE_HW) -> Floats:
    scale = np.array([size_hw[1], size_hw[0], size_hw[1]])
    landmarks = np.stack([points, points + points[9] - points[0]]) / scale  # the other one a palm further on
    return hand_features(Hands(np.ones(2, np.float32), np.ones(2, np.float32), landmarks.astype(np.float32),
                               np.zeros(2, np.int64), size_hw[1] / size_hw[0]))


@pytest.mark.parametrize(("moved", "size_hw"), [
    (hand_at(100, 150), SIZE_HW), (hand_at(160, 200, palm=80), SIZE_HW), (hand_at(160, 200), (240, 640)),
    (hand_at(160, 200), (720, 320))], ids=["place", "size", "wider image", "higher image"])
def test_the_shape_of_a_hand_is_the_same_anywhere(moved: Floats, size_hw: tuple[int, int]) -> None:
    still = features_of(hand_at(160, 200))
    assert still.shape == (HAND_FEATURES,)
    assert still.dtype == np.float32
    shape = np.array([not name.endswith(("presence", "wrist_x", "wrist_y")) for name in feature_names()])
    np.testing.assert_allclose(features_of(moved, size_hw)[shape], still[shape], atol=1e-3)
    np.testing.assert_allclose(still[shape][:42].reshape(21, 2), SHAPE, atol=1e-3)
    assert features_of(hand_at(160, 200, angle=1.0))[shape] != pytest.approx(still[shape], abs=0.1)


def test_features_have_names_in_their_order() -> None:
    named = dict(zip(feature_names(), features_of(hand_at(160, 120)).tolist(), strict=True))
    assert (named["left.presence"], named["left.wrist_x"], named["left.wrist_y"]) == (1, 0.5, 0.5)
    assert [named["both.y0"], named["both.y9"]] == pytest.approx([-1, -1], abs=1e-3)
    assert named["left.x9"] == pytest.approx(0, abs=1e-3)
    assert named["left.y9"] == pytest.approx(-1, abs=1e-3)


def test_a_lost_hand_is_held_for_a_while(tracker: HandTracker, scene: FakeModels) -> None:
    assert not hand_features(tracker.step(IMAGE)).any()
    scene.hands = [LEFT]
    tracker.reset()
    seen = hand_features(tracker.step(IMAGE))
    assert not seen[EACH:].any()
    scene.hands = [LEFT, RIGHT]
    other = tracker.copy()
    other.reset()
    both = hand_features(other.step(IMAGE))
    assert both[2 * EACH:] == pytest.approx([160 / 40, 0] * 2, abs=1e-3)
    scene.hands = []
    for k in range(HOLD_FRAMES + 1):
        held = hand_features(tracker.step(IMAGE))
        assert held[0] == 0
        assert (held[1:] == seen[1:]).all() == (k < HOLD_FRAMES)
    assert not held.any()


def test_hands_are_drawn_where_they_are(tracker: HandTracker, scene: FakeModels) -> None:
    image = IMAGE.copy()
    draw_hands(image, tracker.step(image).in_view())
    assert not image.any(), "no hand"
    scene.hands = [LEFT]
    tracker.reset()
    draw_hands(image, tracker.step(image).in_view())
    rows, columns = np.nonzero(image.any(2))
    assert (rows.min(), columns.min()) >= tuple(np.floor(LEFT[0][:, [1, 0]].min(0) - 6))
    assert all(image[int(y), int(x)].any() for x, y in LEFT[0][:, :2])
    draw_hands(np.zeros((1, 1, 3), np.uint8), tracker.step(IMAGE).in_view())


def test_without_the_extra_a_tracker_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'gatestream\[hands\]'.*GATESTREAM_HANDS"):
        HandTracker()
    later = SimpleNamespace(submodule_search_locations=[str(tmp_path)])  # a release that has the models no more
    monkeypatch.setattr("importlib.util.find_spec", lambda name: later)
    with pytest.raises(UsageError, match=r"0\.10\.14 to 0\.10\.21"):
        find_models()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match=PALM_FILE):
        open_models()


@pytest.mark.parametrize("content", [b"", b"no model at all", bytes(9000)])
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in (PALM_FILE, LANDMARK_FILE):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError, match="mediapipe 0"):
        open_models(tmp_path)


@pytest.fixture(scope="module")
def real_tracker() -> HandTracker:
    try:
        return HandTracker()
    except UsageError as error:
        pytest.skip(f"needs the hand models: {error}")


def test_nothing_in_view_is_no_hand(real_tracker: HandTracker) -> None:
    for image in (IMAGE, IMAGE + 255, np.random.default_rng(0).integers(0, 256, (1, 900, 3), np.uint8)):
        real_tracker.reset()
        assert not real_tracker.step(image).presence.any()
    assert "mediapipe" not in sys.modules


def test_a_hand_in_a_picture_is_found_at_any_angle_and_followed(real_tracker: HandTracker, shared: Path) -> None:
    image = cv2.imread(str(sorted((shared / "data/hands/images/hand_palm").glob("*.jpg"))[0]))
    real_tracker.reset()
    first = real_tracker.step(image)
    slot = int(np.argmax(first.presence))
    assert first.presence[slot] > 0.9
    for shift in range(0, 40, 8):  # the picture slides: tracking follows it
        moved = real_tracker.step(np.roll(image, shift, 1))
        wanted = first.landmarks[slot, 0, 0] + shift / image.shape[1]
        assert moved.landmarks[slot, 0, 0] == pytest.approx(wanted, abs=0.03)
    real_tracker.reset()
    turned = real_tracker.step(np.ascontiguousarray(np.rot90(image)))
    other = int(np.argmax(turned.presence))
    np.testing.assert_allclose(turned.landmarks[other, :, 0], first.landmarks[slot, :, 1], atol=0.04)
    np.testing.assert_allclose(turned.landmarks[other, :, 1], 1 - first.landmarks[slot, :, 0], atol=0.04)


@pytest.fixture(scope="module", params=[None, "f32"])
def precise_tracker(request: pytest.FixtureRequest, real_tracker: HandTracker) -> tuple[HandTracker, float]:
    """With how far its landmarks may lie from MediaPipe's, over the palm's length."""
    if request.param is None:
        return real_tracker, 0.06
    return HandTracker(HandModels(*find_models(), precision=request.param)), 0.03


@pytest.mark.parametrize("name", JUDGED["pictures"])
def test_landmarks_are_those_of_mediapipe_itself(name: str, precise_tracker: tuple[HandTracker, float], shared: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, furthest = precise_tracker
    monkeypatch.setattr("engines.hands.palms.LEAST_SCORE", 0.5)  # as published
    monkeypatch.setattr("engines.hands.tracker.LEAST_PRESENCE", 0.5)
    image = cv2.imread(str(shared / "data/hands/images" / name))
    tracker.reset()
    for frame in ("first", "second"):
        hands = tracker.step(image)
        ours = hands.landmarks[hands.presence > 0, :, :2] * image.shape[1::-1]
        for theirs in JUDGED["pictures"][name][frame] * np.array(image.shape[1::-1]):
            palm = np.linalg.norm(theirs[9] - theirs[0])
            assert min(np.linalg.norm(hand - theirs, axis=1).mean() for hand in ours) < furthest * palm
