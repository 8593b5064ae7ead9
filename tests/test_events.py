"""The event rule, as a table of score tracks; every track also runs tick by tick and offline alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.model.contract import NO_BACKGROUND_EVENTS, EventRule
from engines.model.scores import probabilities
from stream.events import EventTracker, detect_events
from stream.frame import Event
from stream.window import Window

LABELS = ("left", "right", "none")
RULE = EventRule(open_above=0.6, close_below=0.4, close_after_s=0.25, min_duration_s=0.3, min_score=0.5,
                 split_after_s=0.5)
# One character is one tick of 0.1 s.
PROBS = {
    ".": (0.05, 0.05, 0.90),  # idle
    "l": (0.30, 0.20, 0.50),  # active, not sure enough to open
    "L": (0.90, 0.05, 0.05),
    "R": (0.05, 0.90, 0.05),
    "?": (0.45, 0.45, 0.10),  # active, undecided
}


def track(text: str) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(text)) / 10, np.array([PROBS[tick] for tick in text])


def closed(text: str, rule: EventRule = RULE) -> list[tuple[str, float, float]]:
    times, probs_TK = track(text)
    events = detect_events(times, probs_TK, probs_TK, labels=LABELS, background="none", rule=rule)
    return [(event.label, round(event.started_at, 3), round(event.ended_at, 3)) for event in events]


@pytest.mark.parametrize(("text", "wanted"), [
    ("..........", []),
    ("..LLLLLL..........", [("left", 0.2, 0.7)]),                          # ends at the last active frame
    ("..LLLLLL", [("left", 0.2, 0.7)]),                                    # closed by the end of the stream
    ("..LLL....", []),                                                     # shorter than min_duration_s
    ("..LLLL....", [("left", 0.2, 0.5)]),                                  # exactly min_duration_s
    ("..llllllll....", []),                                                # never above open_above
    ("..llLLLLll....", [("left", 0.2, 0.9)]),                              # hysteresis on both sides
    ("..ll..LLLL....", [("left", 0.6, 0.9)]),                              # a candidate must stay active
    ("..LLL..LLL....", [("left", 0.2, 0.9)]),                              # a short hole is bridged
    ("..LLLL...LLLL....", [("left", 0.2, 0.5), ("left", 0.9, 1.2)]),       # a long one divides
    ("..??????....", []),                                                  # below min_score
    ("..RRLLLLLL....", [("left", 0.2, 0.9)]),                              # an early guess is outgrown
    ("..LLLLLLRR....", [("unknown", 0.2, 0.9)]),                           # told as left, in doubt at its end
    ("..LLLLLLRRRRRR....", [("left", 0.2, 0.7), ("right", 0.8, 1.3)]),     # back to back
    ("..LLLLLLRRRRRRLLLLLL..", [("left", 0.2, 0.7), ("right", 0.8, 1.3), ("left", 1.4, 1.9)]),
    ("..LLLLLL..RRRRRR....", [("left", 0.2, 0.7), ("right", 1.0, 1.5)]),   # split across a bridged hole
])
def test_score_tracks(text: str, wanted: list[tuple[str, float, float]]) -> None:
    assert closed(text) == wanted


@pytest.mark.parametrize(("change", "text", "wanted"), [
    ({"open_above": 0.4}, "..llllllll....", []),                           # the score is still too low
    ({"open_above": 0.4, "min_score": 0.2}, "..llllllll....", [("left", 0.2, 0.9)]),
    ({"min_duration_s": 0.0}, "..L....", [("left", 0.2, 0.2)]),
    ({"min_score": 0.4}, "..??????....", [("left", 0.2, 0.7)]),
    ({"min_score": 0.4}, "..LLLLLLRR....", [("left", 0.2, 0.9)]),          # a late flicker changes nothing
    ({"min_score": 0.4}, "..LLLLLLRRLRRL....", [("left", 0.2, 1.3)]),      # a rival must lead without a break
    ({"close_after_s": 0.6}, "..LLLL...LLLL....", [("left", 0.2, 1.2)]),
    ({"close_after_s": 0.0}, "..LLLL.LLLL....", [("left", 0.2, 0.5), ("left", 0.7, 1.0)]),
    ({"split_after_s": 2.0}, "..LLLLLLRRRRRRRR....", [("right", 0.2, 1.5)]),
    ({"report_unknown": True}, "..??????....", [("unknown", 0.2, 0.7)]),
    ({"report_unknown": True}, "..??....llll....LLLLLL..", [("left", 1.6, 2.1)]),   # too short; never open; known
])
def test_each_value_of_the_rule(change: dict[str, float], text: str, wanted: list[tuple[str, float, float]]) -> None:
    assert closed(text, RULE.model_copy(update=change)) == wanted


def live(text: str, **rule: float) -> list[tuple[float, Event]]:
    tracker = EventTracker("cam", "gesture", LABELS, "none", RULE.model_copy(update=rule))
    times, probs_TK = track(text)
    return [(round(float(at), 3), event) for at, probs_K in zip(times, probs_TK, strict=True)
            for event in tracker.update(float(at), probs_K, probs_K)]


@pytest.mark.parametrize(("text", "wanted"), [
    ("..LLLLLL....", [(0.5, "left", True), (1.0, "left", False)]),
    ("..RRRRLLLLLLLL....", [(0.5, "right", True), (0.7, "left", True), (1.6, "left", False)]),
    ("..LLLLLLRR....", [(0.5, "left", True), (1.2, "unknown", False)]),
    ("..LLLLLLRRRRRR....", [(0.5, "left", True), (1.3, "left", False), (1.3, "right", True), (1.6, "right", False)]),
])
def test_open_events_are_told_once_and_at_every_change(text: str, wanted: list[tuple[float, str, bool]]) -> None:
    told = live(text)
    assert [(at, event.label, event.open) for at, event in told] == wanted
    assert all(event.camera == "cam" and event.head == "gesture" for _, event in told)


def test_score_weighs_later_frames_more() -> None:
    early, late = (closed_score(text) for text in ("..LLLLllll....", "..llllLLLL...."))
    assert early < late
    assert closed_score("..LLLLLL....") == pytest.approx(0.9)


def closed_score(text: str) -> float:
    times, probs_TK = track(text)
    rule = RULE.model_copy(update={"min_score": 0.1})
    (event,) = detect_events(times, probs_TK, probs_TK, labels=LABELS, background="none", rule=rule)
    return event.score


@pytest.mark.parametrize(("tops", "wanted"), [
    ([0.3, 0.3, 0.3, 0.3], []),
    ([0.3, 0.7, 0.7, 0.7, 0.7, 0.5, 0.3, 0.3, 0.3, 0.3], [("walk", 0.1, 0.5)]),
])
def test_without_background_the_window_scores_decide(tops: list[float], wanted: list[tuple[str, float, float]]) -> None:
    window_TK = np.array([[top, 0.35 - top / 4, 0.0] for top in tops])
    now_TK = np.full_like(window_TK, 1 / 3)
    events = detect_events(np.arange(len(tops)) / 10, now_TK, window_TK, labels=("walk", "run", "sit"), background=None,
                       rule=RULE)
    assert [(event.label, round(event.started_at, 3), round(event.ended_at, 3)) for event in events] == wanted


ACTIONS = ("walk", "run", "sit", "jump")


def windows(lengths: list[tuple[int, int]], clip_frames: int = 4, clips: int = 4) -> np.ndarray:
    """Window scores of actions one after another, (label, ticks); -1: something that looks like none of them."""
    window, looks = Window(clip_frames, clips, len(ACTIONS)), 5 * np.eye(len(ACTIONS) + 1, len(ACTIONS), dtype="f4")
    return probabilities(np.array([window.push(looks[label])[0] for label, ticks in lengths for _ in range(ticks)]))


@pytest.mark.parametrize(("actions", "wanted", "off_s"), [
    ([(0, 10), (1, 10), (0, 10), (3, 10)], [(0, 0, 10), (1, 10, 20), (0, 20, 30), (3, 30, 40)], 0.5),
    ([(0, 30), (1, 30)], [(0, 0, 30), (1, 30, 60)], 0.5),
    ([(0, 30), (1, 2), (0, 30)], [(0, 0, 62)], 0.5),                      # too short to fill most of a window
    ([(0, 20), (-1, 40), (1, 20)], [(0, 0, 20), (1, 60, 80)], 1.5),        # evidence fades
    ([(0, 20), (0, 20)], [(0, 0, 40)], 0.5),                               # nothing tells the same twice apart
])
def test_without_background_actions_are_apart_where_they_were(actions: list[tuple[int, int]],
                                                              wanted: list[tuple[int, int, int]], off_s: float
                                                              ) -> None:
    window_TK = windows(actions)
    events = detect_events(np.arange(len(window_TK)) / 5, window_TK, window_TK, labels=ACTIONS, background=None,
                           rule=NO_BACKGROUND_EVENTS, window_s=13.5 / 5)
    assert [event.label for event in events] == [ACTIONS[label] for label, _, _ in wanted]
    found = [(event.started_at, event.ended_at) for event in events]
    assert np.abs(np.array(found) - [(first / 5, last / 5) for _, first, last in wanted]).max() < off_s
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_without_background_what_opens_closes() -> None:
    window_TK = windows([(0, 20), (1, 20), (2, 4), (0, 20)])
    tracker = EventTracker("0", "action", ACTIONS, None, NO_BACKGROUND_EVENTS, window_s=13.5 / 5)
    told = [event for k, probs_K in enumerate(window_TK) for event in tracker.update(k / 5, probs_K, probs_K)]
    told += tracker.flush()
    assert [(event.label, event.open) for event in told] == [
        (label, opened) for label in ("walk", "run", "walk") for opened in (True, False)]


@given(st.text("".join(PROBS), max_size=80))
def test_events_are_apart_in_order_and_every_announced_one_closes(text: str) -> None:
    tracker = EventTracker("0", "gesture", LABELS, "none", RULE)
    times, probs_TK = track(text)
    told = [event for at, probs_K in zip(times, probs_TK, strict=True)
            for event in tracker.update(float(at), probs_K, probs_K)] + tracker.flush()
    ends = [event for event in told if not event.open]
    assert {event.started_at for event in told if event.open} <= {event.started_at for event in ends}
    assert all(0 <= event.score <= 1 + 1e-9 and event.label != "none" for event in told)
    for event, following in pairwise(ends):
        assert event.started_at <= event.ended_at < following.started_at
    assert [event for event in told if not event.open] == detect_events(
        times, probs_TK, probs_TK, labels=LABELS, background="none", rule=RULE, camera="0", head="gesture")


@pytest.mark.parametrize("start", [1e-3, 1.7e9])
def test_only_differences_of_time_matter(start: float) -> None:
    times, probs_TK = track("..LLLL...LLLL....LLLLLLRRRRRR..")
    here, there = (detect_events(at, probs_TK, probs_TK, labels=LABELS, background="none", rule=RULE)
                   for at in (times, times + start))
    assert [(event.label, event.score) for event in here] == [(event.label, event.score) for event in there]
    np.testing.assert_allclose([event.started_at + start for event in here], [event.started_at for event in there])


def test_scores_of_a_span_count_in_its_middle() -> None:
    times, probs_TK = track(".........LLLLLLLLLL.........")
    [at_once], [spread] = (detect_events(times, probs_TK, probs_TK, labels=LABELS, background="none", rule=RULE,
                                         now_s=now_s) for now_s in (0.0, 0.8))
    assert at_once.started_at == pytest.approx(0.9)
    assert spread.started_at == pytest.approx(at_once.started_at - 0.4)
    assert spread.ended_at == pytest.approx(at_once.ended_at - 0.4)
    [early] = detect_events(times[9:], probs_TK[9:], probs_TK[9:], labels=LABELS, background="none", rule=RULE,
                            now_s=0.8)
    assert early.started_at == pytest.approx(0.9)  # not before the stream itself


def test_reset_forgets_the_open_event() -> None:
    tracker = EventTracker("0", "gesture", LABELS, "none", RULE)
    for at, probs_K in zip(*track("..LLLLLL"), strict=True):
        tracker.update(float(at), probs_K, probs_K)
    tracker.reset()
    assert tracker.flush() == []
