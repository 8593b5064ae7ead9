"""The window law: step by step equals computing it from the last frames at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.window import AverageFusion, ClipWindow, Window


def direct(frames_TD: np.ndarray, clip_frames: int, window_clips: int) -> tuple[np.ndarray, int]:
    """Mean over the frames of the last clips, and how many clips those are."""
    clips = [frames_TD[start : start + clip_frames] for start in range(0, len(frames_TD), clip_frames)][-window_clips:]
    return np.concatenate(clips).mean(axis=0), len(clips)


@given(clip_frames=st.integers(1, 5), window_clips=st.integers(1, 4), frames=st.integers(1, 40),
       restart=st.integers(0, 40), seed=st.integers(0, 99))
def test_step_by_step_equals_direct(clip_frames: int, window_clips: int, frames: int, restart: int, seed: int) -> None:
    frames_TD = np.random.default_rng(seed).normal(size=(frames, 6)).astype(np.float32)
    window = Window(clip_frames, window_clips, 6)
    since = 0
    for index in range(frames):
        if index == restart:
            window.reset()
            since = index
        descriptor_D, gates_C = window.push(frames_TD[index])
        wanted_D, clips = direct(frames_TD[since : index + 1], clip_frames, window_clips)
        np.testing.assert_allclose(descriptor_D, wanted_D, atol=1e-5)
        assert gates_C.tolist() == [1.0] * clips
        assert descriptor_D.dtype == np.float32


def test_fusion_sees_clip_means_oldest_first_and_may_gate_them() -> None:
    class Newest:
        def project(self, clips_CD: np.ndarray) -> np.ndarray:
            return clips_CD[:, :0]

        def fuse(self, clips_CD: np.ndarray, counts_C: np.ndarray,
                 projected_CX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.seen = clips_CD[:, 0].tolist(), counts_C.tolist()
            return clips_CD[-1], np.eye(len(counts_C), dtype=np.float32)[-1]

    fusion = Newest()
    window = Window(clip_frames=2, window_clips=3, features=1, fusion=fusion)
    for value in range(9):
        descriptor_D, gates_C = window.push(np.array([value], np.float32))
    assert fusion.seen == ([4.5, 6.5, 8.0], [2, 2, 1])
    assert descriptor_D.tolist() == [8.0]
    assert gates_C.tolist() == [0.0, 0.0, 1.0]


@given(segments=st.integers(1, 6), hop=st.integers(1, 6), window_clips=st.integers(1, 4), frames=st.integers(1, 40),
       restart=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_window_of_whole_clips_takes_no_frame_twice(segments: int, hop: int, window_clips: int, frames: int,
                                                      restart: int, seed: int) -> None:
    frames_TD = np.random.default_rng(seed).normal(size=(frames, 6)).astype(np.float32)
    window, since, ends = ClipWindow(window_clips), 0, []
    for index in range(frames):
        if index == restart:
            window.reset()
            since, ends = index, []
        count = index + 1 - since
        if count == 1 or (count - segments) % hop == 0:
            ends.append(count)
        span = range(max(0, ends[-1] - segments), ends[-1])
        descriptor_D, gates_C = window.push(frames_TD[since:][span.start:span.stop].mean(axis=0), span)
        taken, clips, end = set(span), 1, span.start
        while clips < window_clips and any(earlier <= end for earlier in ends):
            end = max(earlier for earlier in ends if earlier <= end)
            clip = set(range(max(0, end - segments), end))
            assert not clip & taken
            taken, clips, end = taken | clip, clips + 1, min(clip)
        np.testing.assert_allclose(descriptor_D, frames_TD[since:][sorted(taken)].mean(axis=0), atol=1e-5)
        assert gates_C.tolist() == [1.0] * clips
        if hop == 1:
            assert taken == set(range(max(0, count - segments * window_clips), count))


def test_descriptors_stay_the_callers_own() -> None:
    window = Window(clip_frames=2, window_clips=2, features=1)
    first, _ = window.push(np.ones(1, np.float32))
    window.push(np.zeros(1, np.float32))
    assert first.tolist() == [1.0]


def test_nothing_drifts() -> None:
    window = Window(clip_frames=4, window_clips=2, features=1)
    for _ in range(25_000):
        window.push(np.array([1e6], np.float32))
        window.push(np.array([-1e6], np.float32))
    for _ in range(8):
        descriptor_D, _ = window.push(np.array([0.1], np.float32))
    assert descriptor_D[0] == pytest.approx(0.1, abs=1e-7)


@given(capacity=st.integers(1, 5), rows=st.integers(1, 20))
def test_a_window_holds_the_newest_clips(capacity: int, rows: int) -> None:
    class Seen(AverageFusion):
        def fuse(self, clips_CD: np.ndarray, *more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.clips = clips_CD[:, 0].tolist()
            return super().fuse(clips_CD, *more)

    window = Window(clip_frames=1, window_clips=capacity, features=1, fusion=(fusion := Seen()))
    for row in range(rows):
        _, gates_C = window.push(np.array([row], np.float32))
    assert fusion.clips == list(range(rows))[-capacity:]
    assert len(gates_C) == min(rows, capacity)
