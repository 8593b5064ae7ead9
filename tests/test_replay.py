"""Recordings: what is replayed is what was recorded, frame for frame, and so are its events."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from engines.errors import FrameError, SinkError, SourceError
from stream.commands.cli import main
from stream.frame import Frame, Gap
from stream.runner import record
from stream.sources import open_source
from stream.sources.base import Source, SourceInfo

RNG = np.random.default_rng(0)
ITEMS = [Frame(RNG.integers(0, 256, (6, 8, 3), np.uint8), 1e9 + k / 7 + 1e-5 * k * k, 2 * k, "cell", k % 2)
         for k in range(6)]
GAP = Gap("cell", ITEMS[3].captured_at, 0.4, "reconnected")


class Script(Source):
    """Gives what it is told to."""

    def __init__(self, items: list[Frame | Gap | Exception]) -> None:
        self.info, self._items = SourceInfo("cell", True, None, 12.5, None), items

    def frames(self) -> Iterator[Frame | Gap]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        pass


def assert_same(one: Frame | Gap, other: Frame | Gap) -> None:
    assert type(one) is type(other)
    if isinstance(one, Frame) and isinstance(other, Frame):
        np.testing.assert_array_equal(one.image_bgr, other.image_bgr)
        assert (one.captured_at, one.index, one.lost, one.camera) == (
            other.captured_at, other.index, other.lost, other.camera)
    else:
        assert one == other


def test_a_replay_is_what_was_recorded(tmp_path: Path) -> None:
    path, items = tmp_path / "a.frames", [*ITEMS[:3], GAP, *ITEMS[3:]]
    assert record(Script(items), path) == (6, 3)
    with open_source(str(path)) as source:
        found = list(source.frames())
        assert (source.info.camera, source.info.fps, source.info.frames) == ("cell", 12.5, 6)
    assert len(found) == len(items)
    for one, other in zip(found, items, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("limits", "frames"), [({"max_frames": 2}, 2), ({"max_seconds": 0.2}, 2), ({}, 4)])
def test_limits_and_what_was_recorded_before_a_fault(limits: dict[str, float], frames: int, tmp_path: Path) -> None:
    path = tmp_path / "a.frames"
    fault = SourceError("a camera that is gone", "it", "plug it in")
    if limits:
        record(Script([*ITEMS[:4], fault]), path, **limits)  # type: ignore[arg-type]
    else:
        with pytest.raises(SourceError, match="gone"):
            record(Script([*ITEMS[:4], fault]), path)
    with open_source(str(path)) as source:
        assert len(list(source.frames())) == frames


def test_a_frame_that_is_damaged_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.frames"
    record(Script(list(ITEMS)), path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE frames SET image = ? WHERE id = 3", (b"nothing",))
        db.commit()
    with open_source(str(path)) as source:
        found = [item for item in source.frames() if isinstance(item, Frame)]
        assert [frame.index for frame in found] == [0, 2, 6, 8, 10]
        assert (found[2].lost, source.lost) == (1 + 1 + 0, 1)


def test_what_is_no_recording_and_what_is_there_already(tmp_path: Path) -> None:
    path = tmp_path / "a.frames"
    record(Script(list(ITEMS)), path)
    with pytest.raises(SinkError, match="there already"):
        record(Script(list(ITEMS)), path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(SourceError, match="version 9"):
        open_source(str(path))
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA user_version = 1; DROP TABLE about")
    with pytest.raises(SourceError, match="no such table"):
        open_source(str(path))


def test_replay_gives_the_same_results(tmp_path: Path) -> None:
    path, source = tmp_path / "a.frames", "sim://gestures?seed=3&seconds=9&realtime=0&rate=15&width=160&height=120"
    assert main(["record", source, "--out", str(path)]) == 0
    said = []
    for name in (source, str(path)):
        assert main(["run", name, "--json", str(tmp_path / "out"), "--camera", "a"]) == 0
        lines = (tmp_path / "out").read_text().splitlines()
        said.append([line for line in lines if '"type":"event"' in line])
    assert said[0] == said[1]
    assert len(said[0]) >= 2


@pytest.mark.parametrize("policy", ["auto", "newest"])
def test_every_frame_of_a_camera_is_recorded_and_lost_ones_are_told(policy: str, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    path, camera = tmp_path / "a.frames", "sim://gestures?seconds=0.03&rate=1000&width=1280&height=720"  # too fast
    assert main(["record", camera, "--out", str(path), "--policy", policy]) == 0
    said = re.fullmatch(r"(\d+) frames, (\d+) lost", capsys.readouterr().out.strip().removeprefix(f"{path}: "))
    assert said is not None
    frames, lost = map(int, said.groups())
    assert frames + lost == 30
    assert (lost > 0) == (policy == "newest")
    with open_source(str(path)) as source:
        assert source.info.frames == frames


def test_frames_that_nobody_could_read_are_told(tmp_path: Path) -> None:
    def unreadable() -> np.ndarray:
        raise FrameError("a cut JPEG", "a whole one", "send it again")

    items = [*ITEMS[:2], Frame(unreadable, 2e9, 5, "cell", 1), *ITEMS[2:]]
    assert record(Script(items), tmp_path / "a.frames") == (6, 5)
