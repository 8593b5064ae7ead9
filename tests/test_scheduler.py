"""The frame scheduler: the newest frame of each camera, equal shares for all, and every drop counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import UsageError
from stream.clock import Clock, Tick
from stream.service.ingress.scheduler import MEMORY, OVERTAKEN, STALE, FrameScheduler
from stream.service.worker import protocol
from stream.wire.messages import Message

MESSAGE = Message("imagezmq", "a", b"12345")


def scheduler(*cameras: str) -> FrameScheduler:
    made = FrameScheduler()
    for camera in cameras:
        made.open(camera)
    return made


def test_the_newest_message_wins_and_the_lost_are_counted() -> None:
    target = scheduler("a")
    for k in range(3):
        target.put("a", MESSAGE, captured_at=float(k), arrived_at=float(k))
    [frame] = target.take(8, 2.1, lambda _: 1.0)
    assert (frame.captured_at, frame.index, frame.lost) == (2.0, 2, 2)
    assert target.take(8, 2.1, lambda _: 1.0) == []
    counters = target.counters["a"]
    assert (counters.received, counters.taken, counters.bytes, counters.dropped[OVERTAKEN]) == (3, 1, 15, 2)
    target.put("a", MESSAGE, 3.0, 3.0)
    assert target.take(8, 3.0, lambda _: 1.0)[0].lost == 0


def test_what_waited_too_long_is_dropped_and_refusals_count_as_lost() -> None:
    target = scheduler("a", "b")
    target.put("a", MESSAGE, 0.0, 0.0)
    target.put("b", MESSAGE, 0.9, 0.9)
    target.count_refused("b", "quota")
    assert [(frame.camera, frame.lost) for frame in target.take(8, 1.0, lambda _: 0.5)] == [("b", 1)]
    assert target.counters["a"].dropped == {STALE: 1}
    assert target.counters["b"].dropped == {"quota": 1}
    assert target.counters["b"].received == 2
    target.put("a", MESSAGE, 1.0, 1.0)
    assert target.take(8, 1.0, lambda _: 0.5)[0].lost == 1


def test_each_camera_has_its_own_patience() -> None:
    target = scheduler("a", "b")
    for camera in "ab":
        target.put(camera, MESSAGE, 0.0, 0.0)
    assert [frame.camera for frame in target.take(8, 1.0, {"a": 2.0, "b": 0.5}.__getitem__)] == ["a"]
    assert target.counters["b"].dropped == {STALE: 1}


def test_pending_messages_above_the_budget_go_the_oldest_first() -> None:
    target = FrameScheduler(most_bytes=30)
    for camera in "abcd":
        target.open(camera)
    for at, (camera, size) in enumerate([("a", 10), ("b", 10), ("a", 5), ("c", 10), ("d", 20), ("d", 40)]):
        target.put(camera, Message("imagezmq", camera, bytes(size)), float(at), float(at))
    assert [frame.camera for frame in target.take(8, 9.0, lambda _: 99.0)] == ["d"]  # one may be larger than all
    assert {camera: dict(counters.dropped) for camera, counters in target.counters.items()} == {
        "a": {OVERTAKEN: 1, MEMORY: 1}, "b": {MEMORY: 1}, "c": {MEMORY: 1}, "d": {OVERTAKEN: 1}}
    assert target._bytes == 0


RATE, MAX_GAP_S = 7.5, 1.0


def taken_after(target: FrameScheduler, camera: str, captured_at: float) -> list[float]:
    """Capture times of what is taken when one more message has come."""
    target.put(camera, MESSAGE, captured_at, 0.0)
    return [frame.captured_at for frame in target.take(8, 0.0, lambda _: 1.0)]


def test_what_the_clock_passes_over_does_not_wait_and_is_no_loss() -> None:
    target = scheduler("a")
    target.set_clock(RATE, MAX_GAP_S)
    assert [at for k in range(8) for at in taken_after(target, "a", k / 15)] == [k / 15 for k in range(0, 8, 2)]
    counters = target.counters["a"]
    assert (counters.received, counters.taken, counters.passed, counters.bytes, counters.dropped) == (8, 4, 4, 40, {})
    for k in range(8, 12):  # two ticks while nobody takes: the newest message is good for the second
        target.put("a", MESSAGE, k / 15, 0.0)
    [frame] = target.take(8, 0.0, lambda _: 1.0)
    assert (frame.captured_at, frame.index, frame.lost, frame.tick) == (11 / 15, 11, 3, Tick(use=True, held=1))


@given(steps_s=st.lists(st.sampled_from([-3.0, -0.2, -0.1, -0.01, 0.0, 0.01, 0.03, 0.07, 0.1, 0.14, 0.3, 0.93, 1.05])
                        | st.floats(-1.5, 1.5), max_size=60))
def test_frames_have_the_ticks_of_a_clock_that_sees_all_of_them(steps_s: list[float]) -> None:
    target, alone = scheduler("a"), Clock(RATE, MAX_GAP_S)
    target.set_clock(RATE, MAX_GAP_S)
    at, wanted, found = 100.0, [], []
    for step_s in steps_s:
        at += step_s
        tick = alone.tick(at)
        wanted += [tick] if tick.use else []
        target.put("a", MESSAGE, at, 0.0)
        found += [frame.tick for frame in target.take(8, 0.0, lambda _: 1.0)]
    assert found == wanted


def test_a_message_that_lies_before_the_one_that_was_taken_is_passed_over_when_it_is_its_turn() -> None:
    target = scheduler("a")
    target.set_clock(RATE, MAX_GAP_S)
    assert taken_after(target, "a", 1.0) == [1.0]
    target.put("a", MESSAGE, 1.0 + 1 / RATE, 0.0)
    target.put("a", MESSAGE, 0.99, 0.0)  # in its place
    assert target.take(8, 0.0, lambda _: 1.0) == []
    assert (target.counters["a"].taken, target.counters["a"].passed) == (1, 1)
    target.put("a", MESSAGE, 1.0 + 1 / RATE, 0.0)
    [frame] = target.take(8, 0.0, lambda _: 1.0)
    assert (frame.captured_at, frame.lost) == (1.0 + 1 / RATE, 1)


def test_clocks_start_anew_with_a_camera_s_stream_and_with_a_model() -> None:
    target = scheduler("a", "b")
    target.set_clock(RATE, MAX_GAP_S)
    assert taken_after(target, "a", 0.0) == [0.0]
    assert taken_after(target, "a", 0.05) == []
    target.discard("a")
    assert taken_after(target, "a", 0.06) == [0.06]
    target.set_clock(30.0, MAX_GAP_S)
    assert [at for k in range(4) for at in taken_after(target, "b", k / 30)] == [k / 30 for k in range(4)]
    target.set_clock(RATE, MAX_GAP_S)
    target.put("a", MESSAGE, 9.0, 0.0)
    shown = target.take(8, 0.0, lambda _: 1.0)
    target.set_clock(RATE, MAX_GAP_S)
    assert [frame.captured_at for frame in target.tick(shown)] == [9.0]  # to another engine, as what came before
    assert taken_after(target, "a", 9.05) == []
    assert taken_after(target, "a", 9.0 + 1 / RATE) == [9.0 + 1 / RATE]


def test_a_camera_with_a_model_of_its_own_has_its_clock() -> None:
    target = scheduler("a", "b")
    target.set_clock(RATE, MAX_GAP_S, {"b": (30.0, 0.1)})
    shown = {camera: [at for k in range(8) for at in taken_after(target, camera, k / 30)] for camera in "ab"}
    assert shown == {"a": [k / 30 for k in range(0, 8, 4)], "b": [k / 30 for k in range(8)]}
    target.put("b", MESSAGE, 0.5, 0.0)
    [frame] = target.take(8, 0.0, lambda _: 1.0)
    assert frame.tick is not None
    assert frame.tick.action == "reset"  # longer than its model allows
    target.set_clock(RATE, MAX_GAP_S)
    assert [at for k in range(8) for at in taken_after(target, "b", k / 30)] == [k / 30 for k in range(0, 8, 4)]


def test_of_those_whose_turn_it_is_the_newest_is_first_and_nobody_waits_for_two_turns() -> None:
    target = scheduler(*"abc")
    for k, camera in enumerate("abc"):
        target.put(camera, MESSAGE, float(k), float(k))
    order = []
    for k in range(3, 9):
        [frame] = target.take(1, float(k), lambda _: 10.0)
        order.append(frame.camera)
        target.put(frame.camera, MESSAGE, float(k), float(k))
    assert order[:3] == ["c", "b", "a"]
    assert sorted(order[3:]) == ["a", "b", "c"]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_under_overload_everyone_gets_the_same_share(most: int) -> None:
    cameras = [f"camera {k}" for k in range(10)]
    target = scheduler(*cameras)
    for k in range(700):
        for i, camera in enumerate(cameras):
            if k % (1 + i % 2) == 0:  # every other camera is half as fast, and still faster than what is left for it
                target.put(camera, MESSAGE, float(k), float(k))
        assert len(target.take(most, float(k), lambda _: 10.0)) == most
    shares = [target.counters[camera].taken for camera in cameras]
    if most <= 3:
        assert max(shares) - min(shares) <= 1
    assert sum(shares) == 700 * most


def test_a_camera_that_left_leaves_nothing() -> None:
    target = scheduler("a")
    target.put("a", MESSAGE, 0.0, 0.0)
    target.close("a")
    assert target.take(8, 0.0, lambda _: 1.0) == []
    assert not target.counters
    with pytest.raises(UsageError, match="not open"):
        target.put("a", MESSAGE, 0.0, 0.0)


@pytest.mark.parametrize(("each_s", "most"), [(0.0005, 8), (0.004, 8), (0.008, 5), (0.016, 2), (0.5, 2)])
def test_as_much_is_under_way_as_is_soon_done(each_s: float, most: int) -> None:
    sizer, now = protocol.BatchSizer(), 0.0
    assert sizer.size == protocol.BATCH
    sizer.on_done(now)  # what nobody handed on
    for _ in range(40):  # one batch waits while one is worked on
        sizer.on_sent(now, 4)
        sizer.on_sent(now, 2)
        now += 4 * each_s
        sizer.on_done(now)
        now += 2 * each_s
        sizer.on_done(now)
        now += 1.0  # nothing to do is no work
    assert sizer.size == most
    fewest = protocol.CREDITS * protocol.LEAST
    assert protocol.CREDITS * sizer.size * each_s <= max(protocol.UNDER_WAY_S, fewest * each_s)
    sizer.on_sent(now, 8)
    sizer.reset()
    sizer.on_done(now + 60)
    assert sizer.size == most
