"""Training streams tell the truth about every frame, and show what they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.datasets import egogestar
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import DatasetError
from engines.synthetic import BACKGROUND, LABELS, Simulation
from engines.training.sections import GRACE_FRAMES, RenderedSections
from engines.training.sources import TrainingSources
from engines.training.stream_loader import SectionShares, TrainingStream

SIZE_HW, RATE = (36, 48), 7.5
Clip = tuple[str, NDArray[np.uint8], NDArray[np.float64]]  # label, images, times in seconds


def sources_of(*clips: Clip, labels: Sequence[str] = (*LABELS, BACKGROUND), **facts: Any) -> TrainingSources:
    """Trimmed clips as EgoGestAR has them; without any, hands are rendered all the same."""
    def read(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        if segment.id == "nothing":
            raise DatasetError("nothing", "a video", "")
        _, images, times_s = clips[int(segment.id)]
        return np.stack([cv2.resize(image, size_hw[::-1]) for image in images]).astype(np.uint8), times_s

    segments = [Segment(str(k), Media(Path(str(k))), labels={"gesture": label}) for k, (label, *_) in enumerate(clips)]
    nothing = [Segment("nothing", Media(Path("nothing")), labels={"gesture": labels[-1]})]
    turned = {"mirrored": {"gesture": {label: egogestar.MIRRORED.get(label, "") for label in LABELS}},
              "reversed": {"gesture": egogestar.REVERSED}}
    data = Dataset("clips", {"gesture": tuple(labels)}, {"train": segments or nothing}, background=labels[-1],
                   **turned, **facts)
    sources = TrainingSources(data, frame_rate=RATE, read_frames=read)
    if not segments:
        sources.idle, sources.places = [], []
    return sources


def stream_of(sources: TrainingSources, rendered: float, seed: int, strength: float = 1.0) -> TrainingStream:
    return TrainingStream(sources, SIZE_HW, RATE, np.random.default_rng(seed), SectionShares(rendered=rendered),
                          strength)


@pytest.mark.parametrize("rendered_share", [0.0, 1.0])
def test_streams_tell_the_truth_about_every_frame(rendered_share: float) -> None:
    rooms = [Simulation(seed, size_hw=(96, 128)) for seed in range(len(LABELS) + 1)]
    sources = sources_of(*[(label, np.stack([room.frame(k) for k in range(16)]), np.arange(16) / 10.0)
                           for label, room in zip((*LABELS, BACKGROUND), rooms, strict=True)])
    frames = list(islice(stream_of(sources, rendered_share, seed=5).frames(), 900))
    background = sources.background
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
    images = np.broadcast_to(4 * steps[:, None, None, None], (60, 48, 64, 3))
    sources = sources_of(("star", images, steps / 30.0))
    frames = list(islice(stream_of(sources, rendered_share, seed=3, strength=0.0).whole_actions(5), 50))
    for gesture in range(10):
        seen = frames[5 * gesture:5 * gesture + 5]
        assert [(frame.gesture, round(5 * frame.progress)) for frame in seen] == [(gesture, k + 1) for k in range(5)]
        assert len({frame.label for frame in seen}) == 1
        assert sources.drawable["star"] == seen[0].label or rendered_share
        assert rendered_share or all(frame.tip_xy is None for frame in seen)
        if not rendered_share:
            assert [int(frame.image_bgr.mean() / 4 + 0.5) // 12 for frame in seen] == list(range(5))
    assert (len({frame.label for frame in frames}) > 4) == bool(rendered_share)
    assert np.mean([frame.tip_xy is not None for frame in frames]) >= 0.9 * rendered_share
    assert len({frame.image_bgr.mean() for frame in frames}) > 20  # not the same moments each time


def test_among_whole_gestures_there_is_idle_time() -> None:
    steps = np.arange(60, dtype=np.uint8)  # every image tells which one it is, and shows nothing
    work = BACKGROUND, np.broadcast_to(4 * steps[:, None, None, None], (60, 48, 64, 3)), steps / 15.0
    sources = sources_of(work)
    frames = list(islice(stream_of(sources, 1.0, seed=3, strength=0.0).whole_actions(5, idle_share=0.5), 400))
    moments = [frames[k:k + 5] for k in range(0, 400, 5)]
    assert all(len({(frame.label, frame.gesture) for frame in moment}) == 1 for moment in moments)
    idle = [moment for moment in moments if moment[0].label == sources.background]
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
    sources = sources_of()
    frames = list(RenderedSections(sources, SIZE_HW, RATE, np.random.default_rng(0)).idle(12.0))
    assert {sources.truths[frame.label] for frame in frames} == {(10,)}
    tips = np.array([frame.tip_xy for frame in frames if frame.tip_xy])
    assert len(tips) > 40
    assert np.ptp(tips, axis=0).min() > 0.2


def test_gestures_of_sparse_streams_are_far_apart() -> None:
    gestures: dict[int, list[int]] = {}
    for k, frame in enumerate(islice(stream_of(sources_of(), 1.0, seed=1).sparse((4.0, 8.0)), 900)):
        if frame.gesture >= 0:
            gestures.setdefault(frame.gesture, []).append(k)
    assert len(gestures) > 3
    whole = [len(frames) / (frames[-1] - frames[0] + 1) for frames in gestures.values()]
    assert min(whole) == 1.0
    assert sum(map(len, gestures.values())) < 900 * 0.6


def test_swipes_turn_with_the_picture_and_with_time() -> None:
    assert egogestar.MIRRORED["left"] == "right"
    assert egogestar.MIRRORED["up"] == "up"
    assert egogestar.REVERSED["up"] == "down"
    assert not set(egogestar.MIRRORED) & {"circlecc", "square", "star", "del", "carret", "tick"}
    assert GRACE_FRAMES > 0
