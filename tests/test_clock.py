"""The clock: which frames the model sees, what is held, and when it starts anew."""

from __future__ import annotations

import math
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import FrameError, UsageError
from stream.clock import Clock, Tick

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


@given(frames=st.lists(st.tuples(st.floats(-1e6, 1e6) | st.floats(-3, 3), st.booleans()), min_size=1, max_size=100))
def test_whatever_another_clock_passed_over_the_clock_is_consistent(frames: list[tuple[float, bool]]) -> None:
    clock = Clock(RATE, 1.0)
    for time_s, passed in frames:
        if passed:
            clock.pass_over(time_s)
        else:
            passing = copy(clock)
            passing.pass_over(frames[0][0])
            assert clock.wants(time_s, frames[0][0]) == passing.tick(time_s).use
            assert 0 <= clock.tick(time_s).held <= RATE * 1.0 + 1


def test_a_frame_passed_over_elsewhere_bridges_a_hole_only_if_it_would_be_passed_over_here() -> None:
    for passed_s, wanted in ((0.1, Tick(use=True, held=7)), (0.2, Tick(use=True, gap_s=pytest.approx(1.05),
                                                                       action="reset"))):
        clock = Clock(RATE, 1.0)
        clock.tick(0.0)
        assert clock.wants(1.05, passed_s)
        clock.pass_over(passed_s)
        assert clock.tick(1.05) == wanted
