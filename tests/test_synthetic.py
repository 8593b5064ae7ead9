"""The rendered gestures and the simulated camera: the truth they state is the truth they show."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from engines.errors import UsageError
from engines.synthetic import LABELS, Points, Pose, Scene, Script, Simulation, distinct_stray, stray, stroke
from engines.synthetic.hand import POSTURES
from engines.synthetic.strokes import DURATIONS_S, resembles_gesture
from stream.frame import Frame
from stream.sources import open_source
from stream.sources.simulated import SimulatedSource

SEEDS = range(8)


# ---- strokes ----

def _area(points: Points) -> float:
    """Signed area of the closed path; with y down it is positive for a clockwise turn on screen."""
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _corners(label: str, points: Points) -> bool:
    """Whether the stroke runs as its name says (x right, y down)."""
    start, end = points[0], points[-1]
    dx, dy = end - start
    top, bottom = points[points[:, 1].argmin()], points[points[:, 1].argmax()]
    half = points[len(points) // 2]
    return bool({
        "left": dx < -0.9 and abs(dy) < 0.4, "right": dx > 0.9 and abs(dy) < 0.4,
        "up": dy < -0.9 and abs(dx) < 0.4, "down": dy > 0.9 and abs(dx) < 0.4,
        "circlecc": _area(points) < -0.2 and start[1] < points[:, 1].mean(),
        "square": _area(points) > 0.2 and start[0] < 0.5 and start[1] < 0.4 and np.hypot(dx, dy) < 0.4,
        "star": start[1] > 0.6 and start[0] < 0.5 and np.hypot(dx, dy) < 0.4 and abs(_area(points)) > 0.05,
        "del": start[1] < 0.4 and end[1] < 0.4 and half[1] > 0.5 and dx > 0.2,
        "carret": start[1] > 0.6 and end[1] > 0.6 and start[0] < top[0] < end[0],
        "tick": end[1] < start[1] < bottom[1] and start[0] < bottom[0] < end[0],
    }[label])


@pytest.mark.parametrize("label", LABELS)
def test_a_stroke_runs_as_its_name_says(label: str) -> None:
    for seed in range(60):
        points, duration_s = stroke(label, np.random.default_rng(seed))
        assert _corners(label, points), seed
        assert DURATIONS_S[label][0] <= duration_s <= DURATIONS_S[label][2]
        assert points.min() >= -1e-9
        assert points.max() == pytest.approx(1)


def test_people_differ() -> None:
    for label in LABELS:
        first, second = (stroke(label, np.random.default_rng(seed))[0] for seed in (1, 2))
        assert np.abs(first - second).max() > 0.02


def test_strays_fit_their_box() -> None:
    for seed in range(100):
        points, duration_s = stray(np.random.default_rng(seed))
        assert points.min() >= -1e-9
        assert points.max() == pytest.approx(1)
        assert duration_s > 0


@pytest.mark.parametrize("label", LABELS)
def test_drawings_of_a_gesture_have_its_shape_wherever_and_however_large(label: str) -> None:
    alike = [resembles_gesture(7 * stroke(label, np.random.default_rng(1000 + seed))[0] + 3) for seed in range(40)]
    assert np.mean(alike) >= 0.9


def test_strays_that_are_to_be_clear_are_like_no_gesture_nor_is_a_half_of_them() -> None:
    for seed in range(40):
        points, _ = distinct_stray(np.random.default_rng(seed))
        halves = [half for half in (points[:60], points[60:]) if np.ptp(half, axis=0).max() >= 0.5]
        assert not any(resembles_gesture(part) for part in (points, *halves)), seed


@pytest.mark.parametrize("idle", ["roam", "stray"])
def test_a_finger_that_points_on_its_way_somewhere_does_not_swipe(idle: str) -> None:
    script = Script(np.random.default_rng(4), idle_s=(300.0, 300.0), idle={idle: 1.0}, strays=distinct_stray)
    script.spans(1.0)  # plans all of the idle time
    moving = [(part.path, part.posture) for part in script._parts if part.path is not None]
    _, *between = moving[:-4]  # the way in; at the end waits, approach and gesture
    ways = [path * (4 / 3, 1.0) for path, posture in between if posture == "pointing"]
    assert len(ways) > 20
    assert not any(resembles_gesture(way) for way in ways)


def test_an_unknown_gesture_is_named() -> None:
    with pytest.raises(KeyError, match="wave"):
        stroke("wave", np.random.default_rng(0))


# ---- script ----

def test_spans_are_ordered_and_apart_and_every_label_occurs() -> None:
    for seed in SEEDS:
        spans = Script(np.random.default_rng(seed), idle_s=(1.5, 5.0)).spans(300)
        assert {span.label for span in spans} == set(LABELS)
        for span, following in itertools.pairwise(spans):
            assert span.started_at < span.ended_at
            assert 1.5 - 1e-6 < following.started_at - span.ended_at < 5.0 + 1e-6


def test_the_tip_draws_the_stroke_within_the_frame_during_its_span() -> None:
    drawn: list[Points] = []

    def noted(label: str, rng: np.random.Generator) -> tuple[Points, float]:
        drawn.append(stroke(label, rng)[0])
        return drawn[-1], 2.0

    script = Script(np.random.default_rng(5), strokes=noted, aspect=1.0)
    for span, wanted in zip(script.spans(100), drawn, strict=False):
        assert span.ended_at - span.started_at == pytest.approx(2.0)
        times = np.linspace(span.started_at, span.ended_at - 1e-6, 50)
        tips = [script.pose(float(t)).tip_xy for t in times]
        path = np.array([tip for tip in tips if tip is not None])
        assert len(path) == 50
        assert path.min() > 0.05
        assert path.max() < 0.95
        wanted = np.column_stack([np.interp(np.linspace(0, 1, 50), np.linspace(0, 1, len(wanted)), axis)
                                  for axis in wanted.T])
        size = np.ptp(path, axis=0).max()
        assert 0.2 < size < 0.75
        np.testing.assert_allclose((path - path.mean(0)) / size, wanted - wanted.mean(0), atol=0.06)


def test_any_way_of_asking_gives_the_same_performance() -> None:
    fine, coarse = (Script(np.random.default_rng(3)) for _ in range(2))
    for t in np.arange(0, 40, 1 / 7):
        fine.pose(float(t))
        fine.spans(float(t))
    assert fine.spans(40) == coarse.spans(40)
    assert fine.pose(40.5) == coarse.pose(40.5)
    assert [span for span in coarse.spans(200) if span.started_at < 40] == coarse.spans(40)


def test_the_hand_moves_without_jumps_and_idles_in_every_way() -> None:
    script, step_s = Script(np.random.default_rng(11)), 0.01
    poses = [script.pose(k * step_s) for k in range(20_000)]
    for before, after in itertools.pairwise(poses):
        if before.tip_xy is not None and after.tip_xy is not None:
            assert np.hypot(*np.subtract(after.tip_xy, before.tip_xy)) < 0.13
    assert {pose.posture for pose in poses if pose.tip_xy is not None} == set(POSTURES)
    assert any(pose.tip_xy is None for pose in poses)


def test_who_shows_gestures_waits_before_each_and_leaves_after_it() -> None:
    for seed in SEEDS:
        script = Script(np.random.default_rng(seed), deliberate=True)
        spans = script.spans(60)
        assert spans[0].started_at < 2.4 + 1e-6
        for span in spans:
            before = [script.pose(span.started_at - left_s).tip_xy for left_s in (0.15, 0.05)]
            during = script.pose(span.started_at + 0.01).tip_xy
            assert during is not None
            assert all(tip is not None and np.hypot(*np.subtract(tip, during)) < 0.05 for tip in before), (seed, span)
            away = script.pose(span.ended_at + 0.4).tip_xy
            assert away is None or max(away) > 1, (seed, span)


# ---- scene ----

@pytest.mark.parametrize("size_hw", [(72, 96), (480, 640), (64, 64), (17, 40), (160, 90)])
def test_a_scene_renders_at_any_size(size_hw: tuple[int, int]) -> None:
    scene = Scene(np.random.default_rng(1), size_hw)
    for pose in (Pose(None), Pose((0.5, 0.3)), Pose((-3.0, 9.0)), Pose((0.9, 0.9), "open", 0.4, (2.0, -3.0))):
        image = scene.draw(pose, 0.5)
        assert image.shape == (*size_hw, 3)
        assert image.dtype == np.uint8


def test_the_fingertip_is_where_the_pose_says() -> None:
    size_hw = (240, 320)
    for seed in range(12):
        scene = Scene(np.random.default_rng(seed), size_hw, np.full((60, 80, 3), (255, 0, 255), np.uint8))
        for tip_xy in ((0.3, 0.2), (0.5, 0.5), (0.8, 0.35)):
            bare, shown = scene.draw(Pose(None), 1.0), scene.draw(Pose(tip_xy), 1.0)
            changed = np.abs(cv2.subtract(shown, bare).astype(int) + cv2.subtract(bare, shown)).max(axis=2) > 80
            rows, columns = np.nonzero(changed)
            top = rows.min()
            x, y = columns[rows <= top + 3].mean(), top
            assert abs(x - tip_xy[0] * 320) < 10, (seed, tip_xy)
            assert abs(y - tip_xy[1] * 240) < 8, (seed, tip_xy)


def test_a_given_background_is_what_is_seen() -> None:
    half = np.zeros((100, 160, 3), np.uint8)
    half[:, 80:] = 255
    for seed in SEEDS:
        image = Scene(np.random.default_rng(seed), (72, 96), half).draw(Pose(None), 0.0)
        assert image[:, :24].mean() + 60 < image[:, -24:].mean()


def test_a_clear_scene_shows_a_hand_that_stands_out() -> None:
    for seed in range(24):
        scene, mask = Scene(np.random.default_rng(seed), (72, 96), clear=True), np.zeros((72, 96, 3), np.uint8)
        scene.hand.draw(mask, (0.5, 0.3))
        bare, shown = (scene.draw(pose, 0.0).astype(float) for pose in (Pose(None), Pose((0.5, 0.3))))
        assert np.abs(shown - bare).max(axis=2)[mask.any(axis=2)].mean() > 40, seed
        assert not scene.look.mirrored


# ---- simulation ----

def test_the_same_seed_gives_the_same_frames_and_spans() -> None:
    first, second, other = (Simulation(seed, (72, 96), 10.0) for seed in (4, 4, 5))
    second.spans(100)  # asking for the truth changes nothing
    for k in range(0, 100, 9):
        image = first.frame(k)
        np.testing.assert_array_equal(image, second.frame(k))
    assert first.spans(100) == second.spans(100)
    assert first.spans(100) != other.spans(100)
    assert not np.array_equal(image, other.frame(99))


def test_frames_do_not_depend_on_the_rate_they_are_taken_at() -> None:
    slow, fast = Simulation(6, (72, 96), 5.0), Simulation(6, (72, 96), 20.0)
    for k in range(1, 40):
        np.testing.assert_array_equal(slow.frame(k), fast.frame(4 * k))


# ---- source ----

class Hours:
    """A clock that moves when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def unix(self) -> float:
        return 1_700_000_000 + self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


SMALL = "width=48&height=36"


def _source(query: str, hours: Hours, policy: str = "auto") -> SimulatedSource:
    return SimulatedSource(f"sim://gestures?{SMALL}&{query}", policy=policy,  # type: ignore[arg-type]
                           now=hours.now, clock=hours.unix, sleep=hours.sleep)


def _frames(source: SimulatedSource) -> list[Frame]:
    return [item for item in source.frames() if isinstance(item, Frame)]


def test_as_fast_as_possible_gives_stream_time_and_every_frame() -> None:
    hours = Hours()
    with _source("seed=2&seconds=2&rate=10&realtime=0", hours) as source:
        frames = _frames(source)
        assert not source.info.live
        assert (source.info.frames, source.info.fps, source.info.size_hw) == (20, 10.0, (36, 48))
        assert source.started_at == 0
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.captured_at for frame in frames] == pytest.approx([k / 10 for k in range(20)])
    assert hours.now_s == 100.0
    again = Simulation(2, (36, 48), 10.0, demonstration=True)
    assert all(np.array_equal(frame.image_bgr, again.frame(k)) for k, frame in enumerate(frames))


def test_in_real_time_each_frame_comes_when_it_is_due() -> None:
    hours = Hours()
    source = _source("seconds=1.5&rate=4", hours)
    seen = []
    for item in source.frames():
        assert isinstance(item, Frame)
        seen.append((item.captured_at, hours.unix()))
    assert source.info.live
    assert source.started_at == seen[0][1]
    assert [at for at, _ in seen] == pytest.approx([source.started_at + k / 4 for k in range(6)])
    assert all(abs(at - given) < 1e-6 for at, given in seen)
    assert source.lost == 0


@pytest.mark.parametrize(("policy", "indices", "lost"), [("newest", [0, 3, 6, 9], 6), ("auto", [0, 3, 6, 9], 6),
                                                         ("every", list(range(10)), 0)])
def test_a_late_reader_gets_the_newest_frame_or_every(policy: str, indices: list[int], lost: int) -> None:
    hours = Hours()
    source = _source("seconds=1&rate=10", hours, policy)
    got = []
    for item in source.frames():
        assert isinstance(item, Frame)
        got.append(item)
        hours.now_s += 0.31
    assert [frame.index for frame in got] == indices
    assert source.lost == lost == sum(frame.lost for frame in got)


def test_without_seconds_it_is_endless_until_closed() -> None:
    hours = Hours()
    source = _source("rate=2", hours)
    assert source.info.frames is None
    for count, _item in enumerate(source.frames()):
        if count == 50:
            source.close()
            source.close()
    assert count == 50


def test_the_truth_is_the_simulations() -> None:
    assert _source("seed=9", Hours()).spans(60) == Simulation(9, (36, 48), 30.0, demonstration=True).spans(60) != []


def test_open_source_knows_it() -> None:
    with open_source("sim://gestures?realtime=0&seconds=0.1&width=32&height=24", camera="c") as source:
        frames = list(source.frames())
    assert [frame.camera for frame in frames if isinstance(frame, Frame)] == ["c"] * 3
    with open_source("sim://gestures") as source:
        assert source.info.live
        assert source.info.frames is None
        assert source.info.size_hw == (480, 640)


@pytest.mark.parametrize(("query", "named"), [
    ("seed=x", "seed=x"), ("seed=-1", "seed=-1"), ("seed=1.5", "seed=1.5"), ("rate=0", "rate=0"),
    ("rate=nan", "rate=nan"), ("rate=", "rate="),
    ("width=15", "width=15"), ("height=5000", "height=5000"), ("seconds=0", "seconds=0"),
    ("seconds=inf", "seconds=inf"), ("realtime=2", "realtime=2"), ("sed=1", "'sed'"), ("seed=1&seed=2", "seed twice"),
    ("seed=" + "9" * 400, "seed=999"), ("=3", "''"),
])
def test_a_parameter_that_cannot_be_is_named(query: str, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        SimulatedSource(f"sim://gestures?{query}")
    assert named in refused.value.got
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("spec", ["sim://", "sim://waves", "sim://gestures/other", "sim://[", "sim://gestures#x"])
def test_another_simulation_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="gestures"):
        SimulatedSource(spec)
