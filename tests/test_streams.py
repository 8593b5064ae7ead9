"""Training streams tell the truth about every frame, and show what they are asked for."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from engines.datasets import egogestar
from engines.datasets.footage import Footage
from engines.synthetic import BACKGROUND, LABELS, Simulation
from engines.training.streams import BUSY, GRACE_FRAMES, NEVER_S, REVERSED, Material, Stream


@pytest.mark.parametrize("rendered_share", [0.0, 1.0])
def test_streams_tell_the_truth_about_every_frame(rendered_share: float) -> None:
    rooms = [Simulation(seed, size_hw=(96, 128)) for seed in range(len(LABELS) + 1)]
    footage = [Footage(label, np.stack([room.frame(k) for k in range(16)]), np.arange(16) / 10.0)
               for label, room in zip((*LABELS, egogestar.UNCLASSIFIED), rooms, strict=True)]
    material = Material(footage[:-1], footage[-1:], {}, [footage[0].median])
    labels = (*LABELS, BACKGROUND)
    stream = Stream(material, labels, (36, 48), 7.5, np.random.default_rng(5), rendered_share)
    frames = list(islice(stream.frames(), 900))
    background = labels.index(BACKGROUND)
    for frame in frames:
        assert frame.image_bgr.shape == (36, 48, 3)
        assert frame.image_bgr.dtype == np.uint8
        assert (frame.gesture >= 0) == (frame.label != background)
        assert 0 <= frame.progress <= 1
    gestures: dict[int, list[tuple[int, float]]] = {}
    for frame in frames:
        if frame.gesture >= 0:
            gestures.setdefault(frame.gesture, []).append((frame.label, frame.progress))
    assert len(gestures) > 5
    for seen in gestures.values():
        assert len({label for label, _ in seen}) == 1
        assert [progress for _, progress in seen] == sorted(progress for _, progress in seen)
    tips = [frame.tip_xy is not None for frame in frames if frame.gesture >= 0]  # known of rendered hands only
    assert any(tips) == (rendered_share == 1.0)
    assert {frame.weight for frame in frames} == {0.0, 1.0}


@pytest.mark.parametrize("rendered_share", [0.0, 1.0])
def test_trimmed_gestures_are_seen_whole_and_evenly(rendered_share: float) -> None:
    steps = np.arange(60, dtype=np.uint8)  # every image tells which one it is
    footage = Footage("star", np.broadcast_to(4 * steps[:, None, None, None], (60, 48, 64, 3)).copy(), steps / 30.0)
    stream = Stream(Material([footage], [], {}, []), (*LABELS, BACKGROUND), (36, 48), 7.5, np.random.default_rng(3),
                    rendered_share, strength=0.0)
    frames = list(islice(stream.trimmed(5), 50))
    for gesture in range(10):
        seen = frames[5 * gesture:5 * gesture + 5]
        assert [(frame.gesture, round(5 * frame.progress)) for frame in seen] == [(gesture, k + 1) for k in range(5)]
        assert len({frame.label for frame in seen}) == 1
        assert LABELS.index("star") == seen[0].label or rendered_share
        assert rendered_share or all(frame.tip_xy is None for frame in seen)
        if not rendered_share:
            assert [int(frame.image_bgr.mean() / 4 + 0.5) // 12 for frame in seen] == list(range(5))
    assert (len({frame.label for frame in frames}) > 4) == bool(rendered_share)
    assert np.mean([frame.tip_xy is not None for frame in frames]) >= 0.9 * rendered_share
    assert len({frame.image_bgr.mean() for frame in frames}) > 20  # not the same moments each time


def test_among_whole_gestures_there_is_idle_time() -> None:
    steps = np.arange(60, dtype=np.uint8)  # every image tells which one it is, and shows nothing
    work = Footage(BACKGROUND, np.broadcast_to(4 * steps[:, None, None, None], (60, 48, 64, 3)).copy(), steps / 15.0)
    stream = Stream(Material([], [work], {}, []), (*LABELS, BACKGROUND), (36, 48), 7.5, np.random.default_rng(3),
                    rendered_share=1.0, strength=0.0)
    frames = list(islice(stream.trimmed(5, idle_share=0.5), 400))
    moments = [frames[k:k + 5] for k in range(0, 400, 5)]
    assert all(len({(frame.label, frame.gesture) for frame in moment}) == 1 for moment in moments)
    idle = [moment for moment in moments if moment[0].label == len(LABELS)]
    assert 0.35 < len(idle) / len(moments) < 0.65
    assert all((frame.gesture, frame.weight) == (-1, 1.0) for moment in idle for frame in moment)
    filmed = [moment for moment in idle if all(np.ptp(frame.image_bgr) == 0 for frame in moment)]
    assert 0.3 < len(filmed) / len(idle) < 0.7
    for moment in filmed:
        when_s = [frame.image_bgr.max() / 4 / 15 for frame in moment]
        assert when_s == sorted(when_s)
        assert when_s[-1] - when_s[0] > 0.3
    assert any(frame.tip_xy is not None for moment in idle for frame in moment)


def test_rendered_idle_sections_are_busy_and_hold_no_gesture() -> None:
    stream = Stream(Material([], [], {}, []), (*LABELS, BACKGROUND), (36, 48), 7.5, np.random.default_rng(0), 1.0)
    frames = list(stream._rendered(12.0, NEVER_S, BUSY))
    assert {frame.label for frame in frames} == {10}
    tips = np.array([frame.tip_xy for frame in frames if frame.tip_xy])
    assert len(tips) > 40
    assert np.ptp(tips, axis=0).min() > 0.2


def test_gestures_of_sparse_streams_are_far_apart() -> None:
    stream = Stream(Material([], [], {}, []), (*LABELS, BACKGROUND), (36, 48), 7.5, np.random.default_rng(1), 1.0)
    gestures: dict[int, list[int]] = {}
    for k, frame in enumerate(islice(stream.sparse((4.0, 8.0)), 900)):
        if frame.gesture >= 0:
            gestures.setdefault(frame.gesture, []).append(k)
    assert len(gestures) > 3
    whole = [len(frames) / (frames[-1] - frames[0] + 1) for frames in gestures.values()]
    assert min(whole) == 1.0
    assert sum(map(len, gestures.values())) < 900 * 0.6


def test_swipes_turn_with_the_picture_and_with_time() -> None:
    assert egogestar.MIRRORED["left"] == "right"
    assert egogestar.MIRRORED["up"] == "up"
    assert REVERSED["up"] == "down"
    assert not set(egogestar.MIRRORED) & {"circlecc", "square", "star", "del", "carret", "tick"}
    assert GRACE_FRAMES > 0
