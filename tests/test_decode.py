"""Frames of segments: picked as live, the same from the cache, whatever happens to the cache."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from engines.bench.decode_rate import measure_decode_rate
from engines.datasets import Dataset, Media, Segment, decode
from engines.datasets.decode import decode_segment
from engines.datasets.frame_cache import FrameCache
from engines.datasets.media import is_video
from engines.errors import DatasetError
from engines.model.preprocess import fit
from stream.clock import EARLY_CELLS, Clock
from stream.sources.video import VideoFile

SIZE_HW = (24, 32)
RATES = (4.0, 7.5, 12.0, 25.0, 60.0)


def video(path: Path, count: int = 75, rate: float = 25.0, seed: int = 0) -> Path:
    """Every frame has its own grey, in steps that compression keeps apart."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 48))
    assert writer.isOpened()
    greys = np.random.default_rng(seed).permutation(count)
    for grey in greys:
        writer.write(np.full((48, 64, 3), 5 + 245 * grey // count, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 3 to 40 of a folder, without 10 to 14."""
    folder = tmp_path_factory.mktemp("stills")
    for i in (*range(3, 10), *range(15, 41)):
        assert cv2.imwrite(str(folder / f"img_{i:05d}.png"), np.full((48, 64, 3), 6 * i, np.uint8))
    return folder


def greys(found: np.ndarray) -> list[int]:
    return [round(float(image.mean())) for image in found]


class TestPicking:
    def test_the_rule_is_the_live_clocks(self) -> None:
        assert decode.EARLY_CELLS == EARLY_CELLS

    @pytest.mark.parametrize("rate", RATES)
    def test_frames_are_those_that_live_use_takes(self, clip: Path, rate: float) -> None:
        clock, live = Clock(rate, max_gap_s=10.0), []
        for item in VideoFile(clip).frames():
            tick = clock.tick(item.captured_at)
            live += [live[-1]] * tick.held if live else []
            if tick.use:
                live.append(fit(item.image_bgr, SIZE_HW, SIZE_HW))
        assert np.array_equal(decode_segment(Segment("a", Media(clip)), rate, SIZE_HW), np.stack(live))

    def test_real_recordings_too(self, shared: Path) -> None:
        """Of many formats: upright where the file says so, from any time on wherever its keyframes are."""
        formats = [path for path in (shared / "data/clips").iterdir() if is_video(path)]
        assert len(formats) == 7
        for path in [*sorted((shared / "data/egogestar/clips").glob("*.mp4"))[::40], *formats]:
            clock, live = Clock(7.5, max_gap_s=10.0), []
            for item in VideoFile(path).frames():
                tick = clock.tick(item.captured_at)
                live += [live[-1]] * tick.held if live else []
                if tick.use:
                    live.append(fit(item.image_bgr, SIZE_HW, SIZE_HW))
            whole = decode_segment(Segment("a", Media(path)), 7.5, SIZE_HW)
            assert np.array_equal(whole, np.stack(live)), path.name
            for first in range(1, len(whole), 7):
                part = decode_segment(Segment("b", Media(path), first / 7.5), 7.5, SIZE_HW)
                assert np.array_equal(part, whole[first:]), (path.name, first)

    @pytest.mark.parametrize(("start_s", "stop_s", "first", "count"), [
        (0.0, None, 0, 15), (0.0, 1.0, 0, 5), (1.0, 2.0, 5, 5), (0.99, 1.01, 5, 1), (1.05, 1.1, 6, 1),
        (2.5, 99.0, 13, 2), (2.8, None, 14, 1)])
    def test_segments_share_one_grid(self, clip: Path, start_s: float, stop_s: float | None, first: int,
                                     count: int) -> None:
        whole = decode_segment(Segment("a", Media(clip)), 5.0, SIZE_HW)
        part = decode_segment(Segment("b", Media(clip), start_s, stop_s), 5.0, SIZE_HW)
        assert np.array_equal(part, whole[first:first + count])

    def test_numbers_count_where_they_mean_a_time(self, stills: Path) -> None:
        # at 10 frames/s image 3 is at 0.2 s with number 1 at 0 s; a hole shows the image before it
        found = decode_segment(Segment("a", Media(stills, 10.0, 1), 0.0, 1.6), 10.0, SIZE_HW)
        assert greys(found) == [6 * i for i in (3, 3, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 15, 16)]

    @pytest.mark.parametrize(("start_s", "first"), [(0.8, 9), (2.0, 9), (3.5, 9), (3.7, 41)])
    def test_a_hole_shows_the_image_before_it_however_long_it_is(self, start_s: float, first: int,
                                                                 tmp_path: Path) -> None:
        for i in (*range(1, 10), *range(38, 43)):  # at 10 frames/s: nothing from 0.9 to 3.7 s
            assert cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((48, 64, 3), i + (3 if i == 38 else 0), np.uint8))
        media = Media(tmp_path, 10.0, 1)
        for rate in (0.5, 2.0, 10.0):
            whole = list(decode.iterate_frames(media, rate, SIZE_HW))
            begin = decode.cell_range(Segment("a", media, start_s), rate)[0]
            if begin < len(whole):
                part = decode_segment(Segment("a", media, start_s), rate, SIZE_HW)
                assert greys(part) == greys(np.stack(whole[begin:]))
        assert greys(decode_segment(Segment("a", media, start_s, start_s + 0.1), 10.0, SIZE_HW)) == [first]

    def test_order_counts_where_numbers_mean_nothing(self, stills: Path) -> None:
        found = decode_segment(Segment("a", Media(stills, 10.0, None), 0.5, 0.9), 10.0, SIZE_HW)
        assert greys(found) == [6 * i for i in (8, 9, 15, 16)]

    def test_a_picture_that_does_not_decode_is_passed_over(self, tmp_path: Path) -> None:
        for i in range(6):
            assert cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((48, 64, 3), 20 * i, np.uint8))
        (tmp_path / "2.png").write_bytes(b"no picture")
        found = decode_segment(Segment("a", Media(tmp_path, 10.0, 0)), 10.0, SIZE_HW)
        assert greys(found) == [0, 20, 20, 60, 80, 100]

    @pytest.mark.parametrize(("name", "told"), [
        ("nowhere.mp4", "does not exist"), ("text.mp4", "cannot be opened"), ("empty", "no frame decodes"),
        ("clip.mp4", "ends before 9.00 s")])
    def test_what_cannot_be_decoded_is_named(self, name: str, told: str, clip: Path, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video\n" * 100)
        (tmp_path / "empty").mkdir()
        path = clip if name == "clip.mp4" else tmp_path / name
        segment = Segment("a", Media(path, 10.0 if name == "empty" else None), 9.0)
        with pytest.raises(DatasetError) as caught:
            decode_segment(segment, 10.0, SIZE_HW)
        direct = str(caught.value)
        with pytest.raises(DatasetError) as caught:
            FrameCache(tmp_path / "cache").frames(segment, 10.0, SIZE_HW)
        cached = str(caught.value)
        assert told in direct
        assert str(path) in direct
        assert str(path) in cached


class TestCache:
    def test_cached_equals_direct(self, clip: Path, stills: Path, tmp_path: Path) -> None:
        cache, rng = FrameCache(tmp_path), random.Random(0)
        for media in (Media(clip), Media(stills, 12.0, 1), Media(stills, 12.0, None)):
            for _ in range(12):
                start_s = rng.uniform(0, 2.6)
                stop_s = rng.choice([None, start_s + rng.uniform(0.01, 3)])
                segment, rate = Segment("a", media, start_s, stop_s), rng.choice(RATES)
                direct = decode_segment(segment, rate, SIZE_HW)
                for _ in range(2):
                    assert np.array_equal(cache.frames(segment, rate, SIZE_HW), direct), (segment, rate)
        assert not list(tmp_path.glob(".decoding-*"))

    def test_cached_equals_direct_on_real_recordings(self, shared: Path, tmp_path: Path) -> None:
        path = shared / "data/ego_homes/clips/making_tea.mp4"
        cache = FrameCache(tmp_path)
        for start_s, stop_s in ((0.0, 0.5), (3.3, 4.1), (8.7, 60.0), (6.01, 6.02)):
            segment = Segment("a", Media(path), start_s, stop_s)
            assert np.array_equal(cache.frames(segment, 7.5, SIZE_HW), decode_segment(segment, 7.5, SIZE_HW))

    def test_decoded_once(self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[Media] = []
        real = decode.iterate_frames

        def counted(media: Media, *args: object) -> Iterator[np.ndarray]:
            decoded.append(media)
            return real(media, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(decode, "iterate_frames", counted)
        for _ in range(2):  # a new cache object finds what the last one wrote
            cache = FrameCache(tmp_path)
            for start_s in (0.0, 1.0, 2.0):
                cache.frames(Segment("a", Media(clip), start_s, start_s + 0.5), 5.0, SIZE_HW)
        assert len(decoded) == 1
        cache.frames(Segment("a", Media(clip)), 10.0, SIZE_HW)  # another rate
        cache.frames(Segment("a", Media(clip)), 10.0, (48, 64))  # another size
        assert len(decoded) == 3

    def test_a_replaced_recording_is_decoded_again(self, tmp_path: Path) -> None:
        cache, path = FrameCache(tmp_path / "cache"), tmp_path / "a.mp4"
        seen = []
        for seed in (1, 2):
            video(path, seed=seed)
            os.utime(path, (seed, seed))
            seen.append(np.array(cache.frames(Segment("a", Media(path)), 5.0, SIZE_HW)))
            assert np.array_equal(seen[-1], decode_segment(Segment("a", Media(path)), 5.0, SIZE_HW))
        assert not np.array_equal(*seen)

    @pytest.mark.parametrize("damage", [b"", b"not numpy at all", None])
    def test_a_damaged_file_is_decoded_again(self, damage: bytes | None, clip: Path, tmp_path: Path,
                                             caplog: pytest.LogCaptureFixture) -> None:
        cache, segment = FrameCache(tmp_path), Segment("a", Media(clip), 1.0)
        expected = np.array(cache.frames(segment, 5.0, SIZE_HW))
        (file,) = tmp_path.glob("*.npy")
        file.write_bytes(file.read_bytes()[:300] if damage is None else damage)
        assert np.array_equal(cache.frames(segment, 5.0, SIZE_HW), expected)
        assert "damaged" in caplog.text
        assert np.array_equal(np.load(file)[5:], expected)

    def test_what_was_not_used_for_longest_goes(self, tmp_path: Path) -> None:
        cache = FrameCache(tmp_path / "cache", limit_bytes=3 * 75 * SIZE_HW[0] * SIZE_HW[1] * 3 + 1000)
        paths = [video(tmp_path / f"{i}.mp4", seed=i) for i in range(4)]
        kept: dict[int, Path] = {}
        for i, path in enumerate(paths):
            if i == 3:  # the first is used again before the fourth needs room
                os.utime(kept[0], (5000, 5000))
            cache.frames(Segment("a", Media(path)), 25.0, SIZE_HW)
            (new,) = set((tmp_path / "cache").glob("*.npy")) - set(kept.values())
            kept[i] = new
            os.utime(new, (1000 + i, 1000 + i))
        left = {i for i, path in kept.items() if path.exists()}
        assert 1 not in left
        assert {0, 3} <= left
        assert sum(path.stat().st_size for path in kept.values() if path.exists()) <= cache.limit_bytes

    def test_one_recording_over_the_limit_is_decoded_each_time(self, clip: Path, tmp_path: Path,
                                                               caplog: pytest.LogCaptureFixture) -> None:
        cache, segment = FrameCache(tmp_path, limit_bytes=5000), Segment("a", Media(clip), 1.0)
        for _ in range(2):
            assert np.array_equal(cache.frames(segment, 25.0, SIZE_HW), decode_segment(segment, 25.0, SIZE_HW))
        assert caplog.text.count("more than the frame cache's limit") == 1
        assert not list(tmp_path.iterdir())

    def test_disk_full(self, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        resource = pytest.importorskip("resource")
        cache, segment = FrameCache(tmp_path), Segment("a", Media(clip), 1.0)
        expected = decode_segment(segment, 25.0, SIZE_HW)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file may grow further, as on a full disk
        try:
            found = [np.array(cache.frames(segment, 25.0, SIZE_HW)) for _ in range(2)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert all(np.array_equal(one, expected) for one in found)
        assert caplog.text.count("going on without it") == 1
        assert str(tmp_path) in caplog.text
        assert not list(tmp_path.iterdir())

    def test_what_killed_processes_left_goes(self, clip: Path, tmp_path: Path) -> None:
        for name, age_s in (("old", 2 * 24 * 3600), ("new", 60)):
            (tmp_path / f".decoding-{name}").write_bytes(b"half")
            os.utime(tmp_path / f".decoding-{name}", (time.time() - age_s,) * 2)
        FrameCache(tmp_path).frames(Segment("a", Media(clip)), 5.0, SIZE_HW)
        assert [path.name for path in tmp_path.glob(".decoding-*")] == [".decoding-new"]

    def test_its_folders_are_the_users_alone(self, clip: Path, tmp_path: Path) -> None:
        """As the engines' cache beside it asks for: TensorRT refuses a folder that others can write."""
        usual = os.umask(0o002)
        try:
            FrameCache(tmp_path / "cache" / "frames").frames(Segment("a", Media(clip)), 5.0, SIZE_HW)
        finally:
            os.umask(usual)
        assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("cache", "cache/frames")] == [0o700, 0o700]

    def test_a_folder_that_cannot_be(self, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").write_text("")
        cache, segment = FrameCache(tmp_path / "file"), Segment("a", Media(clip))
        for _ in range(2):
            assert len(cache.frames(segment, 5.0, SIZE_HW)) == 15
        assert caplog.text.count("going on without it") == 1


class Samples:
    """As a training set is: an item for each segment."""

    def __init__(self, cache: FrameCache, clip: Path) -> None:
        self.cache = cache
        self.segments = [Segment(str(i), Media(clip), 0.3 * i, 0.3 * i + 0.4) for i in range(8)]

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.array(self.cache.frames(self.segments[i], 5.0, SIZE_HW))


class TestWorkers:
    def test_loader_workers_share_a_cache(self, clip: Path, tmp_path: Path) -> None:
        samples = Samples(FrameCache(tmp_path), clip)
        loader = DataLoader(samples, batch_size=None, num_workers=2, multiprocessing_context="spawn")  # type: ignore[arg-type]
        for segment, found in zip(samples.segments, loader, strict=True):
            assert np.array_equal(np.asarray(found), decode_segment(segment, 5.0, SIZE_HW))
        assert len(list(tmp_path.iterdir())) == 1

    def test_rate_of_decoding(self, clip: Path, tmp_path: Path) -> None:
        good = [Segment(str(i), Media(clip), i / 4, i / 4 + 1) for i in range(4)]
        gone = Segment("gone", Media(tmp_path / "gone.mp4"))
        dataset = Dataset("a", {"action": ("x", "y")}, {"train": [*good, gone]})
        measured = measure_decode_rate(dataset, 5.0, SIZE_HW, workers=2, seconds=0.1)
        assert measured.frames > 0
        assert measured.unreadable > 0
        assert measured.frames_per_s == pytest.approx(measured.frames / measured.seconds)
        with pytest.raises(DatasetError, match="nothing decodes"):
            measure_decode_rate(replace(dataset, splits={"train": [gone]}), 5.0, SIZE_HW, seconds=9.0)
