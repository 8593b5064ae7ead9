"""Laws of the engine cache: found by its whole key, whole or not there, damaged or foreign is built again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import engines.bench.doctor as doctor_module
from engines.bench.stages import _last
from engines.datasets.base import Media, Segment
from engines.datasets.frame_cache import FrameCache
from engines.errors import EngineError, SinkError
from engines.runtime import cache

KEY = {"model": "abc", "engine": "openvino", "library": "1.0", "precision": "f32"}


class Builder:
    """Writes two files and counts how often it had to."""

    def __init__(self, text: str = "graph") -> None:
        self.text, self.built = text, 0

    def __call__(self, folder: Path) -> cache.Facts:
        self.built += 1
        (folder / "step.xml").write_text(self.text)
        (folder / "step.bin").write_bytes(bytes(1000))
        return {"precision": "f32"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_in(folder: Path) -> list[str]:
    """What lies in the cache besides the lock files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock-"))


def test_built_once_then_found(folder: Path) -> None:
    builder = Builder()
    first, second = cache.get_or_build(KEY, builder), cache.get_or_build(dict(reversed(KEY.items())), builder)
    assert builder.built == 1
    assert first == second
    assert (second.folder.parent, second.facts) == (folder, {"precision": "f32"})
    assert (second.folder / "step.xml").read_text() == "graph"
    assert left_in(folder) == [second.folder.name]  # nothing is left beside it


@pytest.mark.parametrize("part", KEY)
def test_any_changed_part_of_the_key_builds_anew(part: str, caplog: pytest.LogCaptureFixture) -> None:
    builder = Builder()
    cache.get_or_build(KEY, builder)
    with caplog.at_level(logging.WARNING):
        cache.get_or_build({**KEY, part: "other"}, builder)
    assert builder.built == 2
    assert len(cache.entries()) == 2
    assert (f"for {part} {KEY[part]} and not other" in caplog.text) == (part == "library")  # else a different engine


def flip(entry: Path) -> None:
    raw = bytearray((entry / "step.bin").read_bytes())
    raw[500] ^= 1
    (entry / "step.bin").write_bytes(raw)


def edit_facts(entry: Path) -> None:
    content = json.loads((entry / cache.MANIFEST).read_text())
    content["facts"]["precision"] = "bf16"
    (entry / cache.MANIFEST).write_text(json.dumps(content))


def become_another(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    facts = Builder("foreign")(entry)
    cache.write_manifest(entry, {**KEY, "model": "other"}, facts)


def become_older(entry: Path) -> None:
    content = json.loads((entry / cache.MANIFEST).read_text())
    (entry / cache.MANIFEST).write_text(json.dumps({**content, "format": "gatestream-engine/0"}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flipped": flip,
    "file truncated": lambda entry: (entry / "step.xml").write_text(""),
    "file missing": lambda entry: (entry / "step.bin").unlink(),
    "file added": lambda entry: (entry / "other.bin").write_bytes(b"?"),
    "manifest missing": lambda entry: (entry / cache.MANIFEST).unlink(),
    "manifest truncated": lambda entry: (entry / cache.MANIFEST).write_text('{"format":'),
    "manifest is no table": lambda entry: (entry / cache.MANIFEST).write_text("[]"),
    "manifest is no text": lambda entry: (entry / cache.MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "facts edited": edit_facts,
    "another engine's": become_another,
    "another version's": become_older,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_or_foreign_entry_is_built_again(damage: Callable[[Path], object],
                                                 caplog: pytest.LogCaptureFixture) -> None:
    builder = Builder()
    entry = cache.get_or_build(KEY, builder)
    damage(entry.folder)
    with caplog.at_level(logging.WARNING):
        again = cache.get_or_build(KEY, builder)
    assert builder.built == 2
    assert "damaged" in caplog.text
    assert (again.folder / "step.xml").read_text() == "graph"
    assert (cache.read(again.folder, KEY).facts, len(cache.entries())) == ({"precision": "f32"}, 1)


def test_where_nothing_can_be_written_engines_work_without(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the cache folder should be")
    builder = Builder()
    with caplog.at_level(logging.WARNING):
        entry = cache.get_or_build(KEY, builder)
    assert "cannot be written" in caplog.text
    assert (entry.folder / "step.xml").read_text() == "graph"
    assert cache.entries() == []


def others(place: Path, own: Path) -> None:
    """What an attacker may have put there first."""
    own.mkdir(mode=0o777)
    own.chmod(0o777)


def linked(place: Path, own: Path) -> None:
    (place / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(place / "elsewhere")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users")
@pytest.mark.parametrize("planted", [None, others, linked, lambda place, own: own.write_text("")])
def test_where_the_cache_folder_cannot_be_written_another_is_used(
        planted: Callable[[Path, Path], object] | None, folder: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the cache folder should be")
    first, second = folder.with_name("var-tmp"), folder.with_name("tmp")
    monkeypatch.setattr(cache, "SUBSTITUTES", (str(first), str(second)))
    name = f"gatestream-engines-{os.getuid()}"
    first.mkdir()
    second.mkdir()
    if planted is not None:
        planted(first, first / name)
    builder, place = Builder(), first if planted is None else second
    with caplog.at_level(logging.WARNING):
        entries = [cache.get_or_build(KEY, builder) for _ in range(2)]
    assert builder.built == 1
    assert {entry.folder.parent for entry in entries} == {place / name} == {cache.cache_dir()}
    assert (place / name).stat().st_mode & 0o777 == 0o700
    assert len(cache.entries()) == 1
    assert [line for line in caplog.messages if "cannot be written" in line] == [
        f"engine cache {folder} cannot be written: engines are kept in {place / name}"]


def test_what_a_read_only_cache_folder_holds_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cache.get_or_build(KEY, Builder())
    monkeypatch.setattr(cache, "_is_writable", lambda folder: False)
    monkeypatch.setattr(cache, "SUBSTITUTES", (str(folder.parent),))
    assert cache.get_or_build(KEY, Builder()) == built
    assert cache.entries() == [built]


def test_a_build_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(aside: Path) -> cache.Facts:
        (aside / "half.bin").write_bytes(b"half")
        raise EngineError("a bad graph", "a good one", "try again")

    with pytest.raises(EngineError):
        cache.get_or_build(KEY, fail)
    assert left_in(folder) == []


def test_one_of_several_builders_builds_and_the_others_wait(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    builder, building, finish, waiting = Builder(), threading.Event(), threading.Event(), threading.Event()
    entries: list[cache.Entry] = []

    def build(aside: Path) -> cache.Facts:
        building.set()
        assert finish.wait(timeout=30)
        return builder(aside)

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting" in record.getMessage():
                waiting.set()

    handler = Waits()
    cache.log.addHandler(handler)
    try:
        threads = [threading.Thread(target=lambda: entries.append(cache.get_or_build(KEY, build))) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert building.wait(timeout=30)
        assert waiting.wait(timeout=30)
        finish.set()
        for thread in threads:
            thread.join(timeout=30)
    finally:
        cache.log.removeHandler(handler)
    assert [entry.facts for entry in entries] == [{"precision": "f32"}] * 4
    assert builder.built == 1
    assert left_in(folder) == [entries[0].folder.name]


KILLED = """
import os, signal, sys
from engines.runtime import cache

def build(aside):
    (aside / "half.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

cache.get_or_build({"model": sys.argv[1]}, build)
"""


@pytest.mark.parametrize("model", ["abc", "another"])
def test_a_killed_builder_blocks_nobody_and_what_it_left_goes(folder: Path, model: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, "abc"], check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert any(name.startswith(cache.BUILDING) for name in left_in(folder))
    entry = cache.get_or_build({"model": model}, Builder())
    assert left_in(folder) == [entry.folder.name]


def test_what_is_not_used_for_long_goes_and_what_is_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    (folder / "frames").mkdir(parents=True)
    now = time.time()
    old, newer, newest = (cache.get_or_build({"model": name}, Builder()) for name in ("old", "newer", "newest"))
    for entry, age in ((old, cache.UNUSED_S + 60), (newer, 100), (newest, 50)):
        os.utime(entry.folder / cache.MANIFEST, (now - age, now - age))
    with caplog.at_level(logging.WARNING):
        fourth = cache.get_or_build({"model": "fourth"}, Builder())
    assert left_in(folder) == sorted(["frames", *(entry.folder.name for entry in (newer, newest, fourth))])
    assert f"removed engine {old.folder.name}" in caplog.text
    cache.get_or_build({"model": "newer"}, Builder())  # used now, so that `newest` is what was not used for longest
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * fourth.size_bytes + 100)
    fifth = cache.get_or_build({"model": "fifth"}, Builder())
    assert left_in(folder) == sorted(["frames", *(entry.folder.name for entry in (newer, fourth, fifth))])
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1)
    sixth = cache.get_or_build({"model": "sixth"}, Builder())
    assert left_in(folder) == sorted(["frames", sixth.folder.name])


def test_other_entries_are_told_apart_by_their_manifests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("1.0", "2.0"):
        cache.get_or_build({**KEY, "library": library}, Builder())
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "_sha256", lambda path: hashed.append(path) or "")
    assert [entry.key["library"] for entry in cache.entries()] == ["2.0", "1.0"]
    cache._log_other_versions({**KEY, "library": "3.0"})
    assert hashed == []


@pytest.mark.parametrize("first", ["engine", "report", "frames", "doctor"])
def test_whoever_comes_first_makes_the_folder_private(first: str, folder: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(folder / "deep"))
    makers: dict[str, Callable[[], object]] = {
        "engine": lambda: cache.get_or_build(KEY, Builder()),
        "report": lambda: _last({"model": "a", "engine": "b", "precision": "c"}),
        "frames": lambda: make_private_dir_of_frames(folder / "deep" / "frames"),
        "doctor": doctor_module._cache}
    before = os.umask(0o002)
    try:
        makers[first]()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()} == {0o700}


def make_private_dir_of_frames(folder: Path) -> None:
    media = Media(folder.parents[2], 5.0, first=0)
    cv2.imwrite(str(media.path / "img_00000.png"), np.zeros((48, 64, 3), np.uint8))
    FrameCache(folder).frames(Segment("one", media, 0.0, 0.2), 5.0, (48, 64))
    assert list(folder.glob("*.npy"))


def test_without_the_variable_it_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATESTREAM_CACHE")
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda name, **_: str(tmp_path / name))
    assert cache.cache_dir() == tmp_path / "gatestream" / "engines"


def test_packed_entry_opens_again_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    entry, file = cache.get_or_build(KEY, Builder()), tmp_path / "a.engine"
    cache.pack(entry, file)
    opened = cache.unpack(file, KEY)
    assert (opened.facts, (opened.folder / "step.xml").read_text()) == (entry.facts, "graph")
    with pytest.raises(EngineError, match=r"library 1\.0"):
        cache.unpack(file, {**KEY, "library": "2.0"})
    for damaged in (file.read_bytes()[:300], b"", b"not a zip at all"):
        file.write_bytes(damaged)
        with pytest.raises(EngineError, match=r"a\.engine"):
            cache.unpack(file, KEY)
    with pytest.raises(SinkError):
        cache.pack(entry, tmp_path / "nowhere" / "a.engine")
