"""However a run ends, what was recognised is kept and the first fault surfaces."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine, FakeModel, FakeSink, FakeSource
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import EngineError, SinkError, SourceError
from stream.commands.interrupt import stop_on_signals
from stream.frame import Event, Frame, Gap, Prediction, Summary
from stream.recognizer import Recognizer
from stream.runner import Percentiles, run

BLUE = np.zeros((24, 32, 3), np.uint8)
BLUE[..., 0] = 255
DARK = np.zeros((24, 32, 3), np.uint8)


def frames(text: str, first: int = 0) -> list[Frame]:
    return [Frame(BLUE if kind == "L" else DARK, index / 10, index, "cam")
            for index, kind in enumerate(text, start=first)]


def recognizer(engine: type[FakeEngine] = FakeEngine) -> Recognizer:
    model = FakeModel()
    return Recognizer(model, engine(model))


def ended_well(sink: FakeSink) -> Summary:
    """One closed event was written, then the summary, last."""
    *_, event, summary = sink.records
    assert isinstance(event, Event)
    assert (event.label, event.open) == ("left", False)
    assert isinstance(summary, Summary)
    return summary


def test_a_run_to_the_end() -> None:
    source, sink = FakeSource(frames("..LLLLLL")), FakeSink()
    summary = run(source, recognizer(), [sink])
    assert ended_well(sink) == summary
    assert (summary.camera, summary.frames, summary.predictions, summary.events, summary.dropped) == ("cam", 8, 8, 1, 0)
    assert [frame.index for frame in sink.frames if frame] == list(range(8))
    assert source.closed
    assert not sink.closed


@pytest.mark.parametrize(("limit", "wanted"), [({"max_frames": 5}, 5), ({"max_seconds": 0.5}, 5), ({}, 12)])
def test_limits(limit: dict[str, Any], wanted: int) -> None:
    assert run(FakeSource(frames("..LLLLLLLL..")), recognizer(), **limit).frames == wanted


@pytest.mark.parametrize("fault", [SourceError("the camera left", "a camera", "plug it in"), ZeroDivisionError()])
def test_a_source_that_dies_leaves_what_was_recognised(fault: Exception) -> None:
    source, sink = FakeSource([*frames("..LLLLLL"), fault]), FakeSink()
    with pytest.raises(type(fault)):
        run(source, recognizer(), [sink])
    assert ended_well(sink).frames == 8


def test_an_engine_that_dies_leaves_what_was_recognised() -> None:
    class Dying(FakeEngine):
        def _step(self, frames_u8_BHWC: np.ndarray, slots: Any) -> Any:
            if self.steps == 8:
                raise EngineError("a broken graph", "a graph that runs", "rebuild it")
            return super()._step(frames_u8_BHWC, slots)

    sink = FakeSink()
    with pytest.raises(EngineError):
        run(FakeSource(frames("..LLLLLLLL")), recognizer(Dying), [sink])
    assert ended_well(sink).predictions == 8


def test_a_sink_that_fails_ends_the_run_and_the_others_get_everything() -> None:
    source, full, good = FakeSource(frames("..LLLLLLLLLL")), FakeSink(fail_at=7), FakeSink()
    with pytest.raises(SinkError, match="no space"):
        run(source, recognizer(), [full, good])
    assert ended_well(good).frames == 8
    assert source.given <= 9
    assert not any(isinstance(record, Summary) for record in full.records)


def test_a_sink_that_fails_at_the_end_is_heard() -> None:
    with pytest.raises(SinkError, match="no space"):
        run(FakeSource(frames("..")), recognizer(), [FakeSink(fail_at=2)])


def test_the_first_fault_surfaces() -> None:
    source = FakeSource([*frames("..LLLLLL"), SourceError("the camera left", "a camera", "plug it in")])
    with pytest.raises(SourceError):
        run(source, recognizer(), [FakeSink(fail_at=8)])


def test_bad_and_lost_frames_are_counted() -> None:
    good = frames("..LLLLLL")
    bad = Frame(np.zeros((4, 4, 2), np.uint8), 0.35, 99, "cam")
    source, sink = FakeSource([*good[:4], bad, *good[4:]]), FakeSink()
    source.lost = 3  # after the last frame
    summary = run(source, recognizer(), [sink])
    assert (summary.frames, summary.predictions, summary.dropped) == (9, 8, 4)
    assert ended_well(sink)


def test_gaps_of_the_source_are_passed_on() -> None:
    gap = Gap("cam", 0.4, 2.0, "reconnected")
    sink = FakeSink()
    run(FakeSource([*frames("LLLL"), gap, *frames("LL", first=4)]), recognizer(), [sink])
    assert gap in sink.records


def test_live_frames_have_waited() -> None:
    sink = FakeSink()
    run(FakeSource(frames("L"), live=True), recognizer(), [sink], wall=lambda: 0.25)
    prediction = sink.records[0]
    assert isinstance(prediction, Prediction)
    assert prediction.latency_ms["queue"] == pytest.approx(250)


def test_a_live_source_that_says_nothing_is_closed_in_time() -> None:
    closed = threading.Event()

    class Silent(FakeSource):
        def close(self) -> None:
            closed.set()

    source = Silent([lambda: closed.wait(10)], live=True)
    assert run(source, recognizer(), max_seconds=0.01).frames == 0
    assert closed.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_good_order(number: int) -> None:
    before, stop, sink = signal.getsignal(number), threading.Event(), FakeSink()
    source = FakeSource([*frames("..LLLLLL"), lambda: os.kill(os.getpid(), number), *frames("LLLL", first=8)])
    with stop_on_signals(source.close, stop):
        run(source, recognizer(), [sink], stop=stop)
    assert ended_well(sink).frames == 8
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait() -> None:
    stop = threading.Event()
    stop.set()
    with stop_on_signals(FakeSource([]).close, stop), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300), st.integers(1, 99))
def test_percentiles_are_right_to_two_percent(values: list[float], percent: int) -> None:
    percentiles = Percentiles()
    for value in values:
        percentiles.add(value)
    exact = float(np.percentile(values, percent, method="inverted_cdf"))
    assert percentiles.summary([percent])[f"p{percent}"] == pytest.approx(exact, rel=0.02)


def test_no_values_no_percentiles() -> None:
    assert Percentiles().summary() == {}
