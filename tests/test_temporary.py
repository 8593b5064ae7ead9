"""Temporary folders go with their process, however it ends; those of the living are left alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.runtime.temporary import PREFIX, temporary_dir

pytest.importorskip("fcntl", reason="needs locks of folders")

ROOT = Path(__file__).parents[1]
OTHER = """
import sys
from engines.runtime.temporary import temporary_dir
with temporary_dir() as folder:
    (folder / "model").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def other_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_it_is_private_and_goes(place: Path) -> None:
    with temporary_dir() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.parent == place
        (folder / "file").touch()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_and_that_of_a_living_one_stays() -> None:
    with other_process() as (living, kept), other_process() as (killed, left):
        killed.kill()
        killed.wait()
        assert left.exists()
        with temporary_dir() as own:
            assert not left.exists()
            assert (kept / "model").exists()
            with temporary_dir():  # a process may have several
                assert own.exists()
        assert living.poll() is None
        living.communicate("")
        assert not kept.exists()


def test_what_is_not_ours_is_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = place / "somewhere"
    target.mkdir()
    (target / "file").touch()
    (place / f"{PREFIX}link").symlink_to(target)
    (place / f"{PREFIX}file").touch()
    (place / "gatestream-of-an-older-version").mkdir()
    (place / f"{PREFIX}others").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        with temporary_dir():
            pass
    assert len(list(place.iterdir())) == 5
    with temporary_dir():
        pass
    assert {path.name for path in place.iterdir()} == {
        "somewhere", f"{PREFIX}link", f"{PREFIX}file", "gatestream-of-an-older-version"}
    assert (target / "file").exists()


def test_one_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = tempfile.mkdtemp, list[str]()

    def made_and_removed(**named: str) -> str:
        made.append(make(**named))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", made_and_removed)
    with temporary_dir() as folder:
        assert str(folder) == made[1]
