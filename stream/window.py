"""Clip descriptors over a sliding window, fused into one descriptor.

Legend: D features of a frame, C clips in the window (fewer at the start).

    frame features ──mean of clip_frames──► clip descriptors ──last window_clips──► Fusion ──► window descriptor

An engine that scores clips (`StepResult.spans`) gives clip descriptors by itself; `ClipWindow` is for those."""

from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Fusion(Protocol):
    """Fuses the clips of a window."""

    def project(self, clips_CD: Floats) -> Floats:
        """What `fuse` needs of each clip on its own, [C, X]: computed at each frame of a clip, then kept."""

    def fuse(self, clips_CD: Floats, counts_C: NDArray[np.int64],
             projected_CX: Floats | None = None) -> tuple[Floats, Floats]:
        """Descriptor [D] and gate [C] of each clip, from clip descriptors, oldest first, and their frame counts.
        projected_CX: what `project` gave, if it is known. Every clip has its full count but one at an end, where the
        stream began or the clip is still growing. Must not write its inputs."""


class AverageFusion:
    """The mean over all frames in the window: every gate is open."""

    def project(self, clips_CD: Floats) -> Floats:
        return np.zeros((len(clips_CD), 0), np.float32)

    def fuse(self, clips_CD: Floats, counts_C: NDArray[np.int64],
             projected_CX: Floats | None = None) -> tuple[Floats, Floats]:
        weights_C: Floats = np.divide(counts_C, counts_C.sum(), dtype=np.float32)
        return weights_C @ clips_CD, np.ones(len(counts_C), np.float32)


class Window:
    """The last `window_clips` clips of one camera, the newest one possibly still growing.
    A clip is `clip_frames` consecutive frames, counted from the last reset; its descriptor is their mean. Each clip is
    summed in float64 from zero, so nothing drifts however long the stream runs."""

    def __init__(self, clip_frames: int, window_clips: int, features: int, fusion: Fusion | None = None) -> None:
        self._clip_frames, self._fusion = clip_frames, fusion or AverageFusion()
        self._sum_D = np.zeros(features)
        projected = self._fusion.project(np.zeros((1, features), np.float32)).shape[1]
        self._rows_CX = np.zeros((window_clips, features + projected), np.float32)  # the newest clip's is the last
        self._clips = self._count = 0  # in the window; frames of the newest

    def push(self, features_D: Floats) -> tuple[Floats, Floats]:
        """Adds one frame's features, float32 [D], and fuses the window: its descriptor [D], and each clip's gate."""
        if self._count % self._clip_frames == 0:
            self._rows_CX[:-1] = self._rows_CX[1:]
            self._sum_D[:] = self._count = 0
            self._clips = min(self._clips + 1, len(self._rows_CX))
        self._count += 1
        self._sum_D += features_D
        rows_CX, D = self._rows_CX[-self._clips:], len(self._sum_D)
        rows_CX[-1, :D] = self._sum_D / self._count
        rows_CX[-1:, D:] = self._fusion.project(rows_CX[-1:, :D])
        counts_C = np.full(self._clips, self._clip_frames, np.int64)
        counts_C[-1] = self._count
        return self._fusion.fuse(rows_CX[:, :D], counts_C, rows_CX[:, D:])

    def reset(self) -> None:
        """Starts over: the next frame starts a first clip."""
        self._clips = self._count = 0


class ClipWindow:
    """The newest clip of an engine that scores clips, and up to `window_clips` - 1 earlier ones side by side with it.
    Such clips overlap; each clip taken ends where the next begins, or at the nearest end before. So no frame counts
    twice, and a window of one clip is that clip."""

    def __init__(self, window_clips: int, fusion: Fusion | None = None) -> None:
        self._window_clips, self._fusion = window_clips, fusion or AverageFusion()
        self._clips: deque[tuple[range, Floats]] = deque()

    def push(self, features_D: Floats, span: range) -> tuple[Floats, Floats]:
        """Adds the mean features, float32 [D], of the frames in `span`, unless they are the last again; then fuses."""
        if not self._clips or self._clips[-1][0] != span:
            self._clips.append((span, features_D))
        chosen = deque([self._clips[-1]])
        for clip in reversed(self._clips):
            if len(chosen) < self._window_clips and clip[0].stop <= chosen[0][0].start:
                chosen.appendleft(clip)
        while len(chosen) == self._window_clips and self._clips[0] is not chosen[0]:
            self._clips.popleft()  # later windows begin later
        return self._fusion.fuse(np.stack([features for _, features in chosen]),
                                 np.array([len(frames) for frames, _ in chosen], np.int64))

    def reset(self) -> None:
        """Starts over."""
        self._clips.clear()
