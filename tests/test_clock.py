"""The clock: which frames the model sees, what is held, and when it starts anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import FrameError, UsageError
from stream.clock import CaptureTimes, Clock, EvenTime, Tick

RATE = 7.5


def ticks(times_s: list[float], rate: float = RATE, max_gap_s: float = 1.0) -> list[Tick]:
    clock = Clock(rate, max_gap_s)
    return [clock.tick(time_s) for time_s in times_s]


def used(times_s: list[float], rate: float = RATE, max_gap_s: float = 1.0) -> list[int]:
    return [index for index, tick in enumerate(ticks(times_s, rate, max_gap_s)) if tick.use]


def even(fps: float, count: int, start_s: float = 0.0) -> list[float]:
    return [start_s + index / fps for index in range(count)]


@pytest.mark.parametrize(("fps", "rate", "wanted"), [
    (30, 7.5, [0, 4, 8, 12, 16, 20]),
    (15, 7.5, [0, 2, 4, 6, 8, 10]),
    (7.5, 7.5, [0, 1, 2, 3, 4, 5]),
    (30, 30, [0, 1, 2, 3, 4, 5]),
    (25, 7.5, [0, 3, 7, 10, 13, 17]),
])
@pytest.mark.parametrize("start_s", [0.0, 1.7e9])
def test_frames_are_picked_by_time(fps: float, rate: float, wanted: list[int], start_s: float) -> None:
    found = used(even(fps, 4 * wanted[-1] + 1, start_s), rate)
    assert found[:6] == wanted


@pytest.mark.parametrize("fps", [30, 29.97, 15, 7.5])
def test_times_rounded_to_milliseconds_change_nothing(fps: float) -> None:
    times_s = even(fps, 300)
    assert used([round(time_s, 3) for time_s in times_s]) == used(times_s)


def test_jitter_at_30_frames_per_second_costs_no_cell() -> None:
    times_s = [index / 30 + 0.012 * math.sin(7 * index) for index in range(600)]
    found = ticks(times_s)
    assert sum(tick.held for tick in found) == 0
    assert used(times_s)[1:] == list(range(4, 600, 4))


def test_a_camera_slower_than_the_model_is_held() -> None:
    found = ticks(even(5, 21))
    assert all(tick.use for tick in found)
    assert [tick.held for tick in found[:9]] == [0, 0, 1, 0, 1, 0, 1, 0, 1]  # 5 of 7.5: every second cell but one
    assert sum(tick.held for tick in found) == 30 - 20


@pytest.mark.parametrize(("hole_s", "wanted"), [
    (0.9, Tick(use=True, held=5)),
    (1.0, Tick(use=True, held=6)),
    (1.1, Tick(use=True, gap_s=pytest.approx(1.1), action="reset")),
    (3600.0, Tick(use=True, gap_s=pytest.approx(3600.0), action="reset")),
])
@pytest.mark.parametrize("start_s", [0.0, 1.7e9])
def test_a_hole_is_held_up_to_the_limit(hole_s: float, wanted: Tick, start_s: float) -> None:
    assert ticks([start_s, start_s + hole_s])[1] == wanted


@pytest.mark.parametrize(("back_s", "wanted"), [
    (0.0, Tick(use=False)),
    (0.05, Tick(use=False)),
    (1 / RATE, Tick(use=False)),
    (0.2, Tick(use=True, gap_s=pytest.approx(0.2), action="new stream")),
    (2.0, Tick(use=True, gap_s=pytest.approx(2.0), action="new stream")),
])
def test_time_running_back(back_s: float, wanted: Tick) -> None:
    assert ticks([0.0, 1.0, 2.0, 2.0 - back_s])[3] == wanted


def test_time_creeping_back_is_a_new_stream_in_the_end() -> None:
    actions = [tick.action for tick in ticks([1.0, *(1.0 - 0.01 * step for step in range(1, 30))])]
    assert actions.count("new stream") == 2
    assert actions.index("new stream") == 14  # the first that is more than 1 / 7.5 s before the newest


@pytest.mark.parametrize("break_s", [5.003, -3.017])
def test_the_grid_starts_anew_after_a_break(break_s: float) -> None:
    clock = Clock(RATE, 1.0)
    before = [clock.tick(time_s).use for time_s in even(30, 40)]
    after = [clock.tick(time_s).use for time_s in even(30, 40, start_s=39 / 30 + break_s)]
    assert before == after


def test_reset_makes_the_next_frame_a_first_one() -> None:
    clock = Clock(RATE, 1.0)
    clock.tick(100.0)
    clock.reset()
    assert clock.tick(3.0) == Tick(use=True)


@pytest.mark.parametrize("time_s", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_no_number_costs_that_frame_alone(time_s: float) -> None:
    clock = Clock(RATE, 1.0)
    clock.tick(0.0)
    with pytest.raises(FrameError, match="captured at"):
        clock.tick(time_s)
    assert clock.tick(1 / RATE) == Tick(use=True)


@pytest.mark.parametrize(("rate", "gap_s"), [(0, 1), (-1, 1), (math.nan, 1), (7.5, 0), (7.5, math.inf)])
def test_absurd_settings_are_refused(rate: float, gap_s: float) -> None:
    with pytest.raises(UsageError):
        Clock(rate, gap_s)


@given(steps_s=st.lists(st.floats(0, 1.0), min_size=1, max_size=200), rate=st.floats(0.5, 60),
       start_s=st.sampled_from([0.0, 1.7e9]))
def test_without_a_gap_used_and_held_are_the_cells_that_went_by(steps_s: list[float], rate: float,
                                                                start_s: float) -> None:
    clock = Clock(rate, 1.0)
    time_s = start_s
    found = [clock.tick(time_s)]
    for step_s in steps_s:
        time_s += step_s
        found.append(clock.tick(time_s))
        cells = sum(tick.use + tick.held for tick in found)
        elapsed = (time_s - start_s) * rate
        assert elapsed <= cells <= elapsed + 1.16
        assert found[-1].held <= rate * 1.0 + 1
    assert all(tick.action is None for tick in found)


@given(times_s=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100))
def test_whatever_the_times_the_clock_is_consistent(times_s: list[float]) -> None:
    found = ticks(times_s)
    assert found[0] == Tick(use=True)
    for tick in found:
        assert (tick.action is None) == (tick.gap_s is None)
        assert 0 <= tick.held <= RATE * 1.0 + 1
        assert tick.use or tick == Tick(use=False)
        assert tick.action is None or (tick.use and tick.held == 0 and (tick.gap_s or 0) > 0)


def test_live_times_go_on_evenly_while_the_machines_clock_is_set() -> None:
    wall, steady = [1000.0], [0.0]
    clock = EvenTime(lambda: wall[0], lambda: steady[0])

    def after(seconds: float, step_s: float = 0.0) -> float:
        steady[0] += seconds
        wall[0] += seconds + step_s
        return clock()

    assert after(10.0) == pytest.approx(1010.0)
    assert after(1.0, step_s=-30.0) == pytest.approx(1011.0, abs=0.002)  # set back: no step
    assert after(1000.0) == pytest.approx(2010.0, abs=0.01)  # a thousandth of the time nearer
    assert after(30_000.0) == pytest.approx(wall[0])
    assert after(1.0, step_s=86_400.0) == pytest.approx(wall[0])  # a machine that begins in another year
    times = [after(0.1, step_s=step_s) for step_s in (0.0, 5.0, -5.0, 0.0, 59.0, 0.0)]
    assert all(0.099 < later - earlier < 0.102 for earlier, later in pairwise(times))


FPS, WALL = 15.0, 1.8e9


@pytest.mark.parametrize(("stated", "jumps", "tolerance_s"), [
    (lambda k: WALL + k / FPS, 0, 0.0), (lambda k: WALL - 0.2 + k / FPS, 0, 0.0),  # as stated
    (lambda k: WALL + 300 + k / FPS, 1, 0.0), (lambda k: WALL - 7 * 3600 + k / FPS, 1, 0.0),  # minutes or hours off
    (lambda k: WALL + 60 * 365 * 86400 + k / FPS, 1, 0.0), (lambda k: 12.5 + k / FPS, 1, 0.0),  # 2081, 1970
    (lambda k: None, 0, 0.0),
    (lambda k: WALL + k / FPS + 3600 * (k > 30), 1, 0.0), (lambda k: WALL + k / FPS - 3600 * (k > 30), 1, 0.0),  # NTP
    (lambda k: 5e7 + 1000 * k / FPS, 6, 60.0), (lambda k: WALL, 6, 2.1), (lambda k: 0.0, 6, 2.1),  # ms, or a constant
    (lambda k: WALL - 90 * (k % 2), 6, 60.0),  # two clocks
])
def test_capture_times_are_held_against_arrival(stated: Callable[[int], float | None], jumps: int,
                                                tolerance_s: float) -> None:
    clock = CaptureTimes()
    times = [clock.of_frame(stated(k), WALL + k / FPS, 50.0 + k / FPS) for k in range(200)]
    offset_s = -0.2 if stated(0) == WALL - 0.2 else 0.0
    assert clock.jumps == jumps
    assert bool(clock.notice) == bool(jumps)
    for k, at in enumerate(times):
        assert at == pytest.approx(WALL + offset_s + k / FPS, abs=tolerance_s + 1e-4)
    if jumps > 5:  # arrival times from then on
        assert times[100:] == [WALL + k / FPS for k in range(100, 200)]
    last = stated(199)
    assert clock.skew_s == pytest.approx(0.0 if last is None else last - WALL - 199 / FPS, abs=1e-3)


@pytest.mark.parametrize("wrong", [
    lambda at: at + 3 * 3600, lambda at: at - WALL, lambda at: at - at % 20, lambda at: at * 1000,
    lambda at: at - 90 * (at % 2 > 1)
], ids=["hours ahead", "in 1970", "standing still", "milliseconds", "two clocks"])
def test_a_clock_that_is_right_again_is_believed_and_no_time_jumps(wrong: Callable[[float], float]) -> None:
    clock, notices, times = CaptureTimes(), [], []
    for k in range(round(40 * FPS)):
        at = WALL + k / FPS
        times.append(clock.of_frame(wrong(at) if k / FPS % 20 < 8 else at, at, 50.0 + k / FPS))
        notices.append(clock.notice)
    for again in (0, round(20 * FPS)):
        assert all(notices[again + round(2.5 * FPS):again + round(13 * FPS)])
        assert not any(notices[again + round(13.2 * FPS):again + round(20 * FPS)])
    assert times == pytest.approx([WALL + k / FPS for k in range(len(times))], abs=2.1)
