"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# FFmpeg reads its log level once in a process, at the first video; whichever test opens it, the program's own holds.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference vectors and real clips, which lies beside the project on some machines only."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the reference data in ../shared, which is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines built by tests never mix with the user's own cache; one cache serves the whole test run."""
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path_factory.getbasetemp() / "engine-cache"))
