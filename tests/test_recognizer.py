"""The recogniser's laws, on an engine whose state shows every earlier frame."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import EngineError, FrameError, UsageError
from stream.clock import Clock, Tick
from stream.frame import Event, Gap, Item, Prediction
from stream.recognizer import Arrival, Recognizer
from stream.sinks.overlay import OverlayState

COLOURS = {"L": (255, 0, 0), "R": (0, 0, 255), ".": (0, 0, 0)}
TICK_S = 0.1


def picture(kind: str) -> np.ndarray:
    return np.full((24, 32, 3), COLOURS[kind], np.uint8)


def recognizer(slots: int = 4, **contract: Any) -> Recognizer:
    model = FakeModel(**contract)
    return Recognizer(model, FakeEngine(model, slots))


def play(target: Recognizer, text: str, camera: str = "0", start: float = 0.0) -> list[Item]:
    return [item for index, kind in enumerate(text)
            for item in target.push(picture(kind), start + index * TICK_S, camera)]


def still(items: list[Item]) -> list[Item]:
    """Items without what may differ between two runs: latencies, and the camera's name."""
    return [replace(item, camera="", latency_ms={}) if isinstance(item, Prediction) else replace(item, camera="")
            for item in items]


def events(items: list[Item]) -> list[tuple[str, float, float, bool]]:
    return [(item.label, round(item.started_at, 3), round(item.ended_at, 3), item.open)
            for item in items if isinstance(item, Event)]


def test_a_gesture_becomes_one_event() -> None:
    items = play(recognizer(), "....LLLLLL........")
    assert events(items) == [("left", 0.4, 0.7, True), ("left", 0.4, 1.0, False)]
    prediction = next(item for item in items if isinstance(item, Prediction) and item.frame == 9)
    assert prediction.heads["gesture"].now[0][0] == "left"
    assert sum(score for _, score in prediction.heads["gesture"].window) == pytest.approx(1)
    assert prediction.clips == (1.0, 1.0, 1.0, 1.0)
    assert prediction.captured_at == pytest.approx(0.9)


def test_parts_of_the_latency_make_the_total() -> None:
    ticks: Iterator[float] = iter(range(100))
    model = FakeModel()
    target = Recognizer(model, FakeEngine(model), timer=lambda: next(ticks))
    (prediction,) = target.push(picture("L"), 0.0, waited_s=0.004)
    assert isinstance(prediction, Prediction)
    assert prediction.latency_ms == {"queue": 4.0, "preprocess": 1000.0, "engine": 1000.0, "fuse": 1000.0,
                                     "total": 5004.0}


@settings(deadline=None, max_examples=25)
@given(own=st.text("LR.", min_size=1, max_size=12), other=st.text("LR.", min_size=1, max_size=12))
def test_neighbours_do_not_matter(own: str, other: str) -> None:
    alone, crowded = recognizer(), recognizer()
    wanted = play(alone, own)
    items: list[Item] = []
    for index, (mine, theirs) in enumerate(zip(own, other.ljust(len(own), "R"), strict=False)):
        crowded.push(picture(theirs), 100 + index * TICK_S, "other")
        items += crowded.push(picture(mine), index * TICK_S, "mine")
    assert still(items) == still(wanted)
    assert still([*crowded.flush("mine")]) == still([*alone.flush("0")])


@pytest.mark.parametrize("leave", ["reset", "flush"])
def test_a_reset_camera_equals_a_new_one(leave: str) -> None:
    used = recognizer(slots=1)
    play(used, "LLLLRRRR")
    getattr(used, leave)("0")
    assert still(play(used, "..LLLLRR", "again")) == still(play(recognizer(), "..LLLLRR"))


def test_flush_closes_open_events_and_reset_forgets_them() -> None:
    target = recognizer()
    play(target, "..LLLLLL", "a")
    play(target, "..LLLLLL", "b")
    assert target.counts("a").events == 0
    assert events([*target.flush("a")]) == [("left", 0.2, 0.7, False)]
    target.reset("b")
    assert target.flush("b") == target.flush("never seen") == []


def test_frames_between_ticks_are_passed_over() -> None:
    target = recognizer()
    items = [item for index in range(31) for item in target.push(picture("L"), index / 30)]
    assert len([item for item in items if isinstance(item, Prediction)]) == 11
    counts = target.counts()
    assert (counts.frames, counts.predictions, counts.dropped, counts.held) == (31, 11, 0, 0)


def test_missing_ticks_hold_the_previous_image() -> None:
    text = "..LLLLLL...."
    dense, sparse = recognizer(), recognizer()
    wanted = play(dense, text)
    kept = [index for index, kind in enumerate(text) if index == 0 or kind != text[index - 1] or index == 11]
    items = [item for index in kept for item in sparse.push(picture(text[index]), index * TICK_S)]
    assert sparse.counts().held == len(text) - len(kept)
    last, wanted_last = ([item for item in run if isinstance(item, Prediction)][-1] for run in (items, wanted))
    assert last.heads == wanted_last.heads
    assert events(items) == events(wanted)
    assert last.held == len(text) - len(kept)


@pytest.mark.parametrize(("jump", "action", "seconds"), [(5.0, "reset", 5.0), (-3.0, "new stream", 3.0)])
def test_a_gap_closes_events_and_starts_afresh(jump: float, action: str, seconds: float) -> None:
    target = recognizer()
    play(target, "..LLLLLL")
    items = play(target, "RRRR", start=0.7 + jump)
    assert events(items[:1]) == [("left", 0.2, 0.7, False)]
    gap = items[1]
    assert isinstance(gap, Gap)
    assert (gap.action, gap.seconds, gap.at) == (action, pytest.approx(seconds), pytest.approx(0.7 + jump))
    fresh = play(recognizer(), "RRRR", start=0.7 + jump)
    scores, wanted = ([(item.heads, item.clips) for item in run if isinstance(item, Prediction)]
                      for run in (items, fresh))
    assert scores == wanted


def test_scores_count_from_the_warm_up_on() -> None:
    items = play(recognizer(warmup_frames=4), "LLLLLLLL..")
    assert [item.warm for item in items if isinstance(item, Prediction)] == [False] * 3 + [True] * 7
    assert events(items)[0][1] == pytest.approx(0.3)


@pytest.mark.parametrize(("image", "captured_at", "message"), [
    (np.zeros((4, 4, 2), np.uint8), 0.2, r"shape \(4, 4, 2\)"),
    (np.zeros((4, 4), np.int64), 0.2, "type int64"),
    (np.zeros((0, 4, 3), np.uint8), 0.2, "4 x 0 pixels"),
    ("clip.jpg", 0.2, "type str"),
    (picture("L"), float("nan"), "captured at nan"),
])
def test_a_bad_image_costs_that_image(image: Any, captured_at: float, message: str) -> None:
    target, clean = recognizer(), recognizer()
    play(target, "LL")
    with pytest.raises(FrameError, match=message):
        target.push(image, captured_at)
    assert target.counts().dropped == 1
    play(clean, "LL")
    (prediction,), (wanted,) = (run.push(picture("L"), 0.2, index=9) for run in (target, clean))
    assert isinstance(prediction, Prediction)
    assert prediction.dropped == 1
    assert still([replace(prediction, dropped=0)]) == still([wanted])


@pytest.mark.parametrize("image", [np.zeros((1, 1, 3), np.uint8), np.zeros((900, 3), np.uint8),
                                   np.zeros((40, 30, 4), np.uint8), np.zeros((40, 30), np.uint16)])
def test_odd_images_are_used(image: np.ndarray) -> None:
    (prediction,) = recognizer().push(image, 0.0)
    assert isinstance(prediction, Prediction)


def test_lost_frames_are_counted_and_shown() -> None:
    (prediction,) = recognizer().push(picture("L"), 0.0, lost=3)
    assert isinstance(prediction, Prediction)
    assert prediction.dropped == 3


@pytest.mark.parametrize(("lost", "held"), [(0, 3), (1, 0), (9, 0)])
def test_ticks_that_a_camera_left_out_are_held_and_those_of_lost_images_are_skipped(lost: int, held: int) -> None:
    target = recognizer()
    steps: list[int] = []
    target.score_listeners["0"] = lambda at, count, scores: steps.append(count)
    play(target, "LL")
    prediction, *_ = target.push(picture("R"), 5 * TICK_S, lost=lost)
    assert isinstance(prediction, Prediction)
    assert (prediction.held, target.counts().held, steps[-1]) == (held, held, 2 + held + 1)


def test_a_clock_that_is_kept_elsewhere_gives_what_the_own_one_gives() -> None:
    times = [0.0, 0.06, 0.12, 0.17, 1.14, 1.2, 4.0, 4.13, 3.0]
    here, elsewhere = recognizer(), recognizer()
    clock = Clock(here.contract.frame_rate, here.contract.max_gap_s)
    wanted = [item for at in times for item in here.push(picture("L"), at)]
    items = []
    for index, at in enumerate(times):
        tick = clock.tick(at)
        if tick.use:
            [outcome] = elsewhere.push_many([Arrival(picture("L"), at, index=index, tick=tick)])
            assert isinstance(outcome, list)
            items += outcome
    assert still(items) == still(wanted)
    assert elsewhere.counts().held == here.counts().held > 0


def test_what_is_due_for_an_image_that_cannot_be_decoded_is_made_up_for_by_the_next_one() -> None:
    """Ticks are held, and a new stream begins, though the image that began it is broken."""
    target = recognizer()
    for tick, image in ((Tick(True), picture("L")), (Tick(True), b"broken"), (Tick(True, held=1), b"broken"),
                        (Tick(True), picture("L"))):
        [outcome] = target.push_many([Arrival(image, 0.5, tick=tick)])  # type: ignore[arg-type]
    assert isinstance(outcome, list)
    assert (target.counts().held, target.counts().dropped) == (3, 2)
    target.push_many([Arrival(b"broken", 9.0, tick=Tick(True, gap_s=8.5, action="reset"))])  # type: ignore[arg-type]
    [outcome] = target.push_many([Arrival(picture("L"), 9.1, tick=Tick(True))])
    assert isinstance(outcome, list)
    assert [(item.action, item.seconds) for item in outcome if isinstance(item, Gap)] == [("reset", 8.5)]


def test_each_head_has_its_own_scores_temperature_and_events() -> None:
    labels = ("left", "right", "none")
    target = recognizer(heads={"hand": labels, "sharp": labels}, temperature={"hand": 4.0},
                        window_temperature={"sharp": 9.0})
    items = play(target, "..LLLLLL....")
    scores = [item for item in items if isinstance(item, Prediction)][7].heads
    assert scores["hand"].now[0][1] < scores["sharp"].now[0][1]
    assert scores["sharp"].window[0][1] < scores["hand"].window[0][1]
    assert {item.head for item in items if isinstance(item, Event)} == {"hand", "sharp"}


def test_verb_and_noun_make_actions() -> None:
    labels = ("left", "right", "none")
    items = play(recognizer(heads={"verb": labels, "noun": labels}), "..LLLLLLRRRRRRRRRRR....")
    last = [item for item in items if isinstance(item, Prediction)][7].heads
    assert list(last) == ["verb", "noun", "action"]
    assert last["action"].now[0][0] == "left left"
    assert last["action"].now[0][1] == pytest.approx(last["verb"].now[0][1] * last["noun"].now[0][1])
    assert "none" in dict(last["action"].now)
    assert not any("none " in label or " none" in label for label, _ in last["action"].now)
    of_head = {head: [item for item in items if isinstance(item, Event) and item.head == head]
               for head in ("verb", "noun", "action")}
    for verb, action in zip(of_head["verb"], of_head["action"], strict=True):
        assert action == replace(verb, head="action", label=f"{verb.label} {verb.label}",
                                 score=pytest.approx(verb.score ** 2))


class Both(FakeModel):
    """Of a multi-label head: a picture with blue is "left", one with red "right"; a purple one is both."""

    weights_KD = np.array([[24, 0, -6], [0, 24, -6]], np.float32)


def test_several_events_of_a_multi_label_head_are_open_at_a_time() -> None:
    model = Both(heads={"gesture": ("left", "right")}, background=None, multi_label=("gesture",))
    target = Recognizer(model, FakeEngine(model, 1))
    colours = {"L": (255, 0, 0), "B": (255, 0, 255), "R": (0, 0, 255), ".": (0, 0, 0)}
    items = [item for k, kind in enumerate("..LLLLBBBBBRRRR......BBBBBB")
             for item in target.push(np.full((24, 32, 3), colours[kind], np.uint8), k / 10)] + target.flush()
    told = [item for item in items if isinstance(item, Event)]
    assert [(event.label, event.number, event.open) for event in told] == [
        ("left", 1, True), ("right", 2, True), ("left", 1, False), ("right", 2, False), ("left", 3, True),
        ("right", 4, True), ("left", 3, False), ("right", 4, False)]
    left, right = told[2:4]
    assert left.started_at < right.started_at < left.ended_at < right.ended_at
    both = [item for item in items if isinstance(item, Prediction)][10].heads["gesture"].now
    assert min(score for _, score in both) > 0.9  # not a distribution: each is true for itself
    state = OverlayState()
    state.update(told[:2])
    assert [event.label for event in state.open.values()] == ["left", "right"]
    state.update(told[2:3])
    assert [event.label for event in state.open.values()] == ["right"]
    assert [Event.from_json(event.as_json()).number for event in told[:2]] == [1, 2]


def test_one_camera_too_many_is_refused_by_number() -> None:
    class Noting(FakeEngine):
        def reset(self, slots: Any) -> None:
            joined.extend(slots)

    joined: list[int] = []
    target = Recognizer(FakeModel(), Noting(FakeModel(), slots=2))
    play(target, "L", "a")
    play(target, "L", "b")
    assert sorted(joined) == [0, 1]
    with pytest.raises(UsageError, match="at most 2 cameras"):
        play(target, "L", "c")
    target.flush("a")
    assert len(play(target, "L", "c")) == 1
    assert joined[2:] == joined[:1]


def test_an_engine_that_fails_is_heard() -> None:
    class Broken(FakeEngine):
        def _step(self, frames_u8_BHWC: np.ndarray, slots: Any) -> Any:
            raise EngineError("a broken graph", "a graph that runs", "rebuild it")

    model = FakeModel()
    with Recognizer(model, Broken(model)) as target, pytest.raises(EngineError, match="broken graph"):
        play(target, "L")


def test_replay_equals_live() -> None:
    recording = "..LLLLLL..RRRRRRRR......LRLR"
    times = np.cumsum(np.random.default_rng(3).uniform(0.01, 0.25, len(recording)))
    first, second = recognizer(), recognizer()
    live, replay = ([item for kind, at in zip(recording, times, strict=True)
                     for item in run.push(picture(kind), float(at), waited_s=wait)]
                    for run, wait in ((first, 0.03), (second, 0.0)))
    assert still(live) == still(replay)
    assert first.counts() == second.counts()


def test_closing_closes_the_engine() -> None:
    with recognizer() as target:
        engine = target.engine
    assert isinstance(engine, FakeEngine)
    assert engine.closed


@pytest.mark.parametrize("threads", [None, 2])
def test_several_cameras_at_once_are_as_one_after_the_other(threads: int | None) -> None:
    films = {"a": "..LLLL....", "b": "RRRR.LLLL.", "c": "L.R.L.R.L."}
    one, model = recognizer(), FakeModel()
    with ThreadPoolExecutor(threads or 1) as pool:
        many = Recognizer(model, FakeEngine(model), threads=pool if threads else None)
        for k in range(10):
            at = {"a": 0.1 * k, "b": 0.1 * k, "c": 2.0 * k}  # c has a gap before every image
            apart = [one.push(picture(films[camera][k]), at[camera], camera) for camera in films]
            together = many.push_many([Arrival(picture(films[camera][k]), at[camera], camera) for camera in films])
            assert [still(items) for items in together if isinstance(items, list)] == [still(items) for items in apart]


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_preparing_ahead_changes_nothing(ahead: int) -> None:
    rng = np.random.default_rng(ahead)
    times = {camera: np.cumsum(rng.choice([0.03, 0.06, 0.3, 2.0, -1.0], 60, p=[0.4, 0.4, 0.1, 0.05, 0.05]))
             for camera in "ab"}

    def decode(camera: str, k: int) -> np.ndarray:
        if k % 7 == 3:
            raise FrameError("a broken picture", "a whole one", "check the sender")
        return picture("LR."[k // 8 % 3])

    def told(outcome: Any) -> Any:
        return type(outcome) if isinstance(outcome, FrameError) else still(outcome)

    batches = [[Arrival(partial(decode, camera, k), float(times[camera][k]), camera)
                for camera in "ab"[:1 + (k % 3 > 0)]] for k in range(60)]
    plain, model = recognizer(), FakeModel()
    wanted = [[told(outcome) for outcome in plain.push_many(batch)] for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        early = Recognizer(model, FakeEngine(model), threads=pool)
        prepared = [early.prepare_async(batch) for batch in batches[:ahead]]
        for k, batch in enumerate(batches):
            assert [told(outcome) for outcome in early.push_many(batch, prepared[k])] == wanted[k]
            prepared += [early.prepare_async(later) for later in batches[k + ahead:k + ahead + 1]]
    assert [early.counts(camera) for camera in "ab"] == [plain.counts(camera) for camera in "ab"]


def test_an_image_is_decoded_only_if_the_clock_wants_it() -> None:
    target, decoded = recognizer(), []
    for k in range(30):
        target.push(lambda k=k: decoded.append(k) or picture("L"), k / 30)  # type: ignore[misc]
    assert decoded == list(range(0, 30, 3))
    assert target.counts().frames == 30


def test_one_cameras_bad_image_is_no_others() -> None:
    def broken() -> np.ndarray:
        raise FrameError("a broken picture", "a whole one", "check the sender")

    target = recognizer()
    outcomes = target.push_many([Arrival(broken, 0.0, "a"), Arrival(picture("L"), 0.0, "b"),
                                 Arrival(picture("L"), float("nan"), "c")])
    assert [type(outcome) for outcome in outcomes] == [FrameError, list, FrameError]
    assert (target.counts("a").dropped, target.counts("b").dropped) == (1, 0)
    with pytest.raises(UsageError, match="two images of camera 'a' at once"):
        target.push_many([Arrival(picture("L"), 1.0, "a")] * 2)


@pytest.mark.parametrize("as_time", [
    lambda at: datetime.fromtimestamp(at, UTC), lambda at: datetime.fromtimestamp(at), np.float64, np.asarray, Decimal],
    ids=["aware", "naive", "float64", "array", "decimal"])
def test_any_kind_of_time_is_as_its_seconds(as_time: Any, in_utc: None) -> None:
    start, said = 1_790_000_000.0, list[list[Item]]()
    for convert in (float, as_time):
        target = recognizer()
        said.append(still([item for k, kind in enumerate("....LLLLLL........")
                           for item in target.push(picture(kind), convert(start + 0.125 * k))]))
    assert said[0] == said[1]
    assert events(said[0])


@pytest.mark.parametrize("captured_at", ["12.5", None, b"1", True, 10 ** 400, timedelta(seconds=1), [1.0, 2.0],
                                         np.datetime64("2026-11-30")])
def test_what_is_no_time_is_told(captured_at: Any) -> None:
    with pytest.raises(UsageError, match=r"captured at .*; wanted a time in seconds.*; pass"):
        recognizer().push(picture("L"), captured_at)


@pytest.mark.parametrize(("times", "notice"), [
    ([1.79e12 + 33.3 * k for k in range(40)], "each frame is a gap, 33.3 s after the last: if capture"),
    ([1000.0 * TICK_S * k for k in range(40)], "in milliseconds, pass seconds"),
    ([1e6 * TICK_S * k for k in range(40)], "in microseconds"),
    ([1e9 * TICK_S * k for k in range(40)], "in nanoseconds"),
    ([5.25] * 40, "stand still at 5.25"),
    ([np.float32(1.79e9 + TICK_S * k) for k in range(40)], "good to 128 s only, as of float32"),
    ([np.float32(9.9e5 + TICK_S * k) for k in range(40)], "good to 0.0625 s only"),
    ([1.79e9 + TICK_S * k for k in range(40)], None), ([np.float32(TICK_S * k) for k in range(40)], None),
    ([1.79e9 + TICK_S * (k // 8) for k in range(40)], None),  # an old camera driver's clock
    ([10.0 * (k // 5) + TICK_S * (k % 5) for k in range(40)], None)])  # long gaps
def test_times_that_are_no_seconds_are_noted_once(times: list[Any], notice: str | None,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    target = recognizer()
    for at in times:
        target.push(picture("L"), at, "cell-3")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (notice is not None)
    assert notice is None or (notice in lines[0] and lines[0].startswith("cell-3: "))


def test_a_forked_process_is_told_before_it_touches_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode() -> np.ndarray:
        raise AssertionError("OpenCV's threads are missing, too")

    target = recognizer()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(EngineError, match="forked"):
        target.push(decode, 0.0)
