"""Decoded frames on disk: each recording is decoded once for a frame rate and a size, then read by mapping its file.

    cache = FrameCache(default_folder(), limit_bytes=50 * 10**9)
    images_u8_NHWC = cache.frames(segment, rate=7.5, size_hw=(72, 96))

Files appear whole or not at all, so any number of processes may share a folder (loader workers get a copy of the
cache object). Over the limit, what was not used for longest goes. Where nothing can be written, decoding goes on
without the cache, and one warning says so."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import platformdirs
from numpy.lib import format as npy
from numpy.typing import NDArray

from engines.datasets import decode
from engines.datasets.base import Media, Segment
from engines.decoding.paths import list_images
from engines.errors import DatasetError
from engines.runtime.cache import make_private_dir

log = logging.getLogger("gatestream.datasets")

LIMIT_BYTES = 20 * 10**9
_LAYOUT = "1"  # of files, and the rule by which frames are picked: a change makes old files unknown
_ABANDONED_S = 24 * 3600.0  # without a byte more, an unfinished file is one of a killed process
_REMEASURE_AFTER = 0.05  # of the limit: how much is written before the folder is measured again


def default_folder() -> Path:
    """The user's folder for decoded frames; it need not exist."""
    return Path(os.environ.get("GATESTREAM_CACHE") or platformdirs.user_cache_dir("gatestream", False)) / "frames"


def read_frames(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[decode.Images, NDArray[np.float64]]:
    """A segment at `rate` frames a second, decoded once: images uint8 [N, H, W, 3], times in the recording [N].
    From the user's cache. BGR, scaled to cover `size_hw`, centre-cropped, perhaps read-only; times in seconds. Raises
    DatasetError."""
    images = _open_cache(default_folder()).frames(segment, rate, size_hw)
    return images, (decode.cell_range(segment, rate)[0] + np.arange(len(images))) / rate


class FrameCache:
    """Decoded recordings in a folder of their own, which together take `limit_bytes` at most.
    For one thread; a copy in each loader worker."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._usable = True
        self._unmeasured = limit_bytes  # bytes written since the folder was measured: so much that it is done at once
        self._too_large: set[str] = set()

    def frames(self, segment: Segment, rate: float, size_hw: tuple[int, int]) -> decode.Images:
        """As `decode.decode_segment`, with the recording's other segments decoded along the way; perhaps read-only.
        Raises DatasetError as that does."""
        key = (_LAYOUT, *_version(segment.media), segment.media.rate, segment.media.first, rate, size_hw)
        path = self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npy"
        whole = self._read(path, size_hw)
        if whole is None and self._usable and path.name not in self._too_large:
            self._write(path, segment.media, rate, size_hw)
            whole = self._read(path, size_hw)
        if whole is None:
            return decode.decode_segment(segment, rate, size_hw)
        first, end = decode.cell_range(segment, rate)
        if first >= len(whole):
            raise decode.ends_early_error(segment.media, first / rate)
        return whole[first:end]

    def _read(self, path: Path, size_hw: tuple[int, int]) -> decode.Images | None:
        try:
            whole: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
            if whole.dtype != np.uint8 or whole.shape[1:] != (*size_hw, 3) or not len(whole):
                raise ValueError(f"{whole.dtype} {whole.shape}")
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("cached frames %s are damaged (%s): decoding again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return whole

    def _write(self, path: Path, media: Media, rate: float, size_hw: tuple[int, int]) -> None:
        """Decodes a whole recording into its file. DatasetError comes out; trouble with the disk does not."""
        aside: Path | None = None
        try:
            make_private_dir(self.folder)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".decoding-", delete=False) as file:
                aside = Path(file.name)
                npy.write_array_header_1_0(file, _header(0, size_hw))
                count = 0
                for image in decode.iterate_frames(media, rate, size_hw):
                    file.write(np.ascontiguousarray(image).data)
                    count += 1
                    if file.tell() > self.limit_bytes:
                        log.warning("%s alone is more than the frame cache's limit of %.1f GB: it is decoded each time",
                                    media.path, self.limit_bytes / 1e9)
                        self._too_large.add(path.name)
                        return
                size = file.tell()
                file.seek(0)
                npy.write_array_header_1_0(file, _header(count, size_hw))
            self._make_room(size)
            aside.replace(path)
        except OSError as error:
            self._usable = False
            log.warning("the frame cache %s cannot be written (%s): going on without it", self.folder, error.strerror)
        finally:
            if aside is not None:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Removes what was not used for longest. Other processes write too, so the folder itself is measured; not
        for each file, as that takes long in a folder of many."""
        self._unmeasured += wanted
        if self._unmeasured < _REMEASURE_AFTER * self.limit_bytes:
            return
        self._unmeasured = 0
        for path in self.folder.glob(".decoding-*"):  # of processes that were killed
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
        kept = []
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(OSError):
                seen = path.stat()
                kept.append((seen.st_mtime_ns, seen.st_size, path))
        total = sum(size for _, size, _ in kept) + wanted
        room = self.limit_bytes if total <= self.limit_bytes else (1 - 2 * _REMEASURE_AFTER) * self.limit_bytes
        for _, size, path in sorted(kept):
            if total <= room:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


_open_cache = lru_cache(maxsize=4)(FrameCache)


def _header(count: int, size_hw: tuple[int, int]) -> dict[str, object]:
    """numpy leaves room in a header for the first axis to grow, so writing it again keeps its length."""
    return {"descr": "|u1", "fortran_order": False, "shape": (count, *size_hw, 3)}


def _version(media: Media) -> tuple[object, ...]:
    """What changes when a recording is replaced. Raises DatasetError where there is none."""
    try:
        seen = media.path.stat()
        parts: list[object] = [str(media.path.absolute()), seen.st_mtime_ns, seen.st_size]
        if media.rate is not None:
            inside = list_images(media.path)
            for path in inside[:1] + inside[-1:]:
                parts += [len(inside), path.name, path.stat().st_mtime_ns, path.stat().st_size]
    except OSError as error:
        raise DatasetError(f"{media.path} ({error.strerror})", "a recording that can be read",
                           "see gatestream data check") from error
    return tuple(parts)
