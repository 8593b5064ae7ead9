"""Which frames of a video make a clip: one from each of S equal segments, as GSM and GSF train and test.

    middle_frames(frames=37, segments=8)                 -> 2, 6, 11, 16, 20, 25, 30, 34
    evaluation_frames(37, 8, clips=2)                    -> the segments' first frames, then their middle ones
    sample_frames(37, 8, np.random.RandomState(seed))    -> one at random from each segment

Frames count from 0; the official file numbers are one higher. Videos shorter than S frames repeat frames.

Legend: S segments.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError

Indices = NDArray[np.int64]
# Of a video with fewer frames than segments (GSM's validation: no more), "gsm" repeats the first frame, "gsf" takes the
# middle frames all the same.
Style = Literal["gsm", "gsf"]


def middle_frames(frames: int, segments: int) -> Indices:
    """The middle frame of each segment [S]: testing with one clip. Raises UsageError for numbers below 1."""
    length = _segment_length(frames, segments)
    return (length / 2 + length * np.arange(segments)).astype(np.int64)


def evaluation_frames(frames: int, segments: int, clips: int = 1) -> Indices:
    """Frames of one clip, or of two whose scores are averaged, [clips, S]: first frames of segments, then middles."""
    if clips not in (1, 2):
        raise UsageError(f"{clips} test clips", "1 or 2", "choose one of these")
    firsts = (_segment_length(frames, segments) * np.arange(segments)).astype(np.int64)
    return np.stack([firsts, middle_frames(frames, segments)][2 - clips:])


def validation_frames(frames: int, segments: int, style: Style = "gsf") -> Indices:
    """Frames that validation during training looks at [S]."""
    chosen = middle_frames(frames, segments)
    return np.zeros_like(chosen) if style == "gsm" and frames <= segments else chosen


def sample_frames(frames: int, segments: int, random: np.random.RandomState, style: Style = "gsf") -> Indices:
    """One frame at random from each segment of equal whole length [S]: training.

    random: NumPy's legacy generator, so that a seed gives the draws of the published code.
    """
    chosen = middle_frames(frames, segments)
    length = frames // segments
    if length:
        return np.arange(segments) * length + random.randint(length, size=segments)
    return np.zeros_like(chosen) if style == "gsm" else chosen


def _segment_length(frames: int, segments: int) -> float:
    if frames < 1 or segments < 1:
        raise UsageError(f"{segments} segments of {frames} frames", "at least one of each", "leave such videos out")
    return frames / segments
