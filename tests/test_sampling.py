"""Frame sampling: the official indices exactly, and one frame from every segment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.errors import UsageError
from engines.training.official_recipe import evaluation_frames, middle_frames, sample_frames, validation_frames


def test_the_official_frames_are_chosen(shared: Path) -> None:
    rows = json.loads((shared / "reference" / "vectors_sampling.json").read_text())
    assert {row["repo"] for row in rows} == {"gsm", "gsf"}
    for row in rows:
        size, style = (row["num_frames"], row["segments"]), row["repo"]
        ours = {"val": validation_frames(*size, style), "test1": evaluation_frames(*size)[0],
                "test2": evaluation_frames(*size, clips=2),
                "train_legacy_seed1234": sample_frames(*size, np.random.RandomState(1234), style)}
        for name, indices in ours.items():
            assert (indices + 1).tolist() == row[name], (size, style, name)


@pytest.mark.parametrize(("frames", "segments"), [(8, 8), (37, 8), (100, 16), (1000, 3)])
def test_one_frame_comes_from_every_segment(frames: int, segments: int) -> None:
    edges = np.arange(segments + 1) * (frames / segments)
    for chosen in (middle_frames(frames, segments), *evaluation_frames(frames, segments, clips=2)):
        assert (chosen + 1 > edges[:-1]).all()
        assert (chosen < edges[1:]).all()
    length, random = frames // segments, np.random.RandomState(0)
    picks = np.stack([sample_frames(frames, segments, random) for _ in range(50)])
    assert (picks // length == np.arange(segments)).all()
    assert (length == 1) == (picks == picks[0]).all()


@pytest.mark.parametrize(("frames", "segments", "clips"), [(0, 8, 1), (8, 0, 1), (8, 8, 3)])
def test_impossible_numbers_are_refused(frames: int, segments: int, clips: int) -> None:
    with pytest.raises(UsageError):
        evaluation_frames(frames, segments, clips)
