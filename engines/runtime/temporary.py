"""Temporary folders that go with their process, also where that is killed: then when the next one is made.
Each is locked for as long as its process lives, which other processes see, those in other containers too, and by which
systemd-tmpfiles knows what it must not clean away."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

PREFIX = "gatestream-locked-"


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """A new folder that only this user may read. Raises OSError."""
    folder, lock = _make_locked() if fcntl else (Path(tempfile.mkdtemp(prefix=PREFIX)), None)
    try:
        if lock is not None:
            _remove_abandoned(folder.parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make_locked() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Removes what this user's killed processes left."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # one that is locked, no folder, or another user's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
