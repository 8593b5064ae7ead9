"""Evaluation: matching of events with the truth, and that reports say what the live path did."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import FakeEngine, FakeModel

from stream.evaluation import Recording, Truth, evaluate_clips, evaluate_stream, joined, match, played_on
from stream.frame import Event
from stream.recognizer import Recognizer


def event(label: str, started_at: float, ended_at: float) -> Event:
    return Event("0", "gesture", label, started_at, ended_at, 0.9, open=False)


@pytest.mark.parametrize(("truths", "events", "pairs"), [
    ([("a", 0, 10)], [("a", 0, 10)], [(0, 0)]),
    ([("a", 0, 10)], [("b", 0, 10)], []),
    ([("a", 0, 10)], [("a", 8, 18)], []),                                  # IoU 2/18
    ([("a", 0, 10)], [("a", 0, 3)], [(0, 0)]),                             # IoU 0.3 exactly
    ([("a", 0, 10)], [("a", 0, 2.9)], []),
    ([("a", 0, 10)], [("a", 0, 5), ("a", 5, 10)], [(0, 1)]),               # one truth, one event
    ([("a", 0, 10), ("a", 10, 20)], [("a", 1, 19)], [(1, 0)]),             # one event, one truth
    ([("a", 0, 10), ("b", 10, 20)], [("b", 11, 20), ("a", 1, 9)], [(0, 1), (1, 0)]),
    ([], [("a", 0, 1)], []),
    ([("a", 5, 5)], [("a", 5, 5)], []),                                    # no length, no overlap
])
def test_matching(truths: list[tuple[str, float, float]], events: list[tuple[str, float, float]],
                  pairs: list[tuple[int, int]]) -> None:
    stretches, found = [Truth(*one) for one in truths], [event(*one) for one in events]
    assert sorted((stretches.index(truth), found.index(seen)) for truth, seen in match(stretches, found)) == pairs


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Blue is "left", red is "right", black is "none" to the fake model; two seconds each at 10 frames/s."""
    folder = tmp_path_factory.mktemp("videos")
    paths = {}
    for name, colour in {"left": (255, 0, 0), "right": (0, 0, 255), "none": (0, 0, 0)}.items():
        paths[name] = folder / f"{name}.avi"
        writer = cv2.VideoWriter(str(paths[name]), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
        for _ in range(20):
            writer.write(np.full((24, 32, 3), colour, np.uint8))
        writer.release()
    return paths


@pytest.fixture
def recognizer() -> Recognizer:
    model = FakeModel()
    return Recognizer(model, FakeEngine(model))


def test_clips_are_right_when_the_last_window_names_them(videos: dict[str, Path], recognizer: Recognizer) -> None:
    recordings = [Recording(videos["left"], "left", "head"), Recording(videos["right"], "right", "head"),
                  Recording(videos["right"], "left", "history")]
    report = evaluate_clips(recognizer, recordings, "gesture")
    assert report.accuracy("head") == 1.0
    assert report.accuracy("history") == 0.0
    assert report.accuracy() == pytest.approx(2 / 3)
    assert report.as_json()["wrong"] == ["left as right"]


def test_a_joined_stream_is_recognised_and_timed(videos: dict[str, Path], recognizer: Recognizer) -> None:
    recordings = [Recording(videos[label], label) for label in ("left", "right", "left")]
    frames, truths = joined(recordings, [videos["none"]], seed=1, idle_s=(1.0, 1.5))
    report = evaluate_stream(recognizer, frames, truths)
    assert [truth.label for truth in report.truths] == [seen.label for seen in report.events]
    assert len(report.truths) == 3
    assert report.f1 == 1.0
    assert all(truth.ended_at - truth.started_at == pytest.approx(2.0) for truth in report.truths)
    assert 0 < report.delay_s <= 0.6


def test_joining_is_decided_by_the_seed(videos: dict[str, Path]) -> None:
    recordings = [Recording(videos[label], label) for label in ("left", "right")]
    runs = []
    for seed in (4, 4, 5):
        frames, truths = joined(recordings, [videos["none"]], seed)
        times = [at for _, at in frames]
        assert times == sorted(times)
        runs.append((times, truths))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_every_event_of_idle_footage_is_counted(videos: dict[str, Path], recognizer: Recognizer) -> None:
    quiet = evaluate_stream(recognizer, played_on([videos["none"]] * 2), [])
    assert quiet.events == []
    assert quiet.seconds == pytest.approx(3.9)
    loud = evaluate_stream(recognizer, played_on([videos["none"], videos["left"], videos["none"]]), [])
    assert loud.events_per_minute == pytest.approx(60 / loud.seconds)
