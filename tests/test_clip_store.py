"""The recordings that the page stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.clip_store import PLACE, ClipStore
from engines.errors import SourceError, UsageError
from stream.frame import Frame, Image
from stream.sinks.video import write_video
from stream.sources import open_source
from stream.teaching.teach import group_name, recording_name


def pictures(seconds: float, size_hw: tuple[int, int] = (48, 64)) -> Iterator[tuple[float, Image]]:
    """At ten a second, each brighter than the one before."""
    for k in range(round(10 * seconds) + 1):
        yield 1e9 + k / 10, np.full((*size_hw, 3), min(255, 8 * k), np.uint8)


def seen(path: Path) -> list[tuple[float, float]]:
    """Times and brightness of a video's pictures."""
    with open_source(str(path), policy="every") as source:
        return [(frame.captured_at, float(frame.image_bgr.mean())) for frame in source.frames()
                if isinstance(frame, Frame)]


def test_recordings_are_kept_cut_and_deleted(tmp_path: Path) -> None:
    store = ClipStore(tmp_path / "new" / "lessons")
    assert store.clips() == []
    for label in ("wave", "wave", "  Kaffee   kochen "):
        store.add(label, pictures(3.0))
    assert [(clip.label, clip.number) for clip in store.clips()] == [("Kaffee kochen", 1), ("wave", 1), ("wave", 2)]
    assert store.clips()[1].whole_s == pytest.approx(3.0, abs=0.15)
    store.trim("wave", 2, 1.0, 2.0)
    times, brightness = zip(*seen(store.find("wave", 2)), strict=True)
    assert times[-1] == pytest.approx(1.0, abs=0.01)
    assert brightness[0] == pytest.approx(80, abs=7)
    assert store.clips()[2].seconds < store.clips()[2].whole_s
    store.trim("wave", 2, 0.0, 3.0)  # nothing is lost by a cut
    assert len(seen(store.find("wave", 2))) == 31
    store.remove("wave", 1)
    store.add("wave", pictures(1.0))
    assert [(clip.label, clip.number) for clip in store.clips()] == [("Kaffee kochen", 1), ("wave", 2), ("wave", 3)]
    store.remove("Kaffee kochen", 1)
    assert [path.name for path in (tmp_path / "new" / "lessons" / "clips").iterdir()] == ["wave"]


def test_where_it_was_is_kept_and_told_by_the_files_names(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    for place in ("", "kitchen", " the  garden "):
        store.add("wave", pictures(1.0), place)
    for _ in range(8):
        store.add("wave", pictures(0.6), "kitchen")
    assert [(clip.number, clip.place) for clip in store.clips()][:3] == [(1, ""), (2, "kitchen"), (3, "the garden")]
    assert [clip.number for clip in store.clips()] == list(range(1, 12))
    names = [recording_name(store.find("wave", number), store.clips_folder) for number in (1, 2, 3)]
    assert [group_name(name, PLACE) for name in names] == ["wave/1.mp4", "kitchen", "the garden"]
    assert store.trim("wave", 3, 0.0, 0.5).place == "the garden"
    store.remove("wave", 3)
    with pytest.raises(UsageError):
        store.find("wave", 3)
    assert not list(tmp_path.glob("*/wave/3*"))
    with pytest.raises(UsageError, match=r"the name .*up"):
        store.add("wave", pictures(1.0), "../up")


def test_pictures_are_kept_small(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    video = tmp_path / "large.mp4"
    write_video(video, pictures(1.0, (480, 640)))
    store.add_file("wave", video)
    with open_source(str(store.find("wave", 1))) as source:
        assert next(item for item in source.frames() if isinstance(item, Frame)).image_bgr.shape == (288, 384, 3)


@pytest.mark.parametrize(("label", "seconds", "says"), [
    ("", 2, "the name ''"), ("../up", 2, "the name '../up'"), ("a/b", 2, "the name"), ("x" * 41, 2, "up to 40"),
    (".hidden", 2, "the name"), ("wave", 0.3, "of 0.3 s"), ("wave", 601, "more than 600 s")])
def test_what_cannot_be_kept_leaves_nothing(label: str, seconds: float, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        ClipStore(tmp_path).add(label, pictures(seconds, (2, 2)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_not_there(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    for call in (lambda: store.find("wave", 1), lambda: store.remove("wave", 1),
                 lambda: store.trim("wave", 1, 0, 1), lambda: store.find("../..", 1)):
        with pytest.raises(UsageError):
            call()
    (tmp_path / "wrong.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError):
        store.add_file("wave", tmp_path / "wrong.mp4")
