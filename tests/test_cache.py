"""Laws of the engine cache: found by its whole key, whole or not there, damaged or foreign is built again."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_built_once_then_found(folder: Path) -> None:
    builder = Builder()
    first, second = cache.get_or_build(KEY, builder), cache.get_or_build(dict(reversed(KEY.items())), builder)
    assert builder.built == 1
    assert first == second
    assert (second.folder.parent, second.facts) == (folder, {"precision": "f32"})
    assert (second.folder / "step.xml").read_text() == "graph"
    assert [path.name for path in folder.iterdir()] == [second.folder.name]  # nothing is left beside it


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


def test_a_build_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(aside: Path) -> cache.Facts:
        (aside / "half.bin").write_bytes(b"half")
        raise EngineError("a bad graph", "a good one", "try again")

    with pytest.raises(EngineError):
        cache.get_or_build(KEY, fail)
    assert list(folder.iterdir()) == []


def test_builders_at_once_all_get_a_good_entry(folder: Path) -> None:
    together, entries = threading.Barrier(4), []

    def build(aside: Path) -> cache.Facts:
        facts = Builder()(aside)
        together.wait(timeout=30)  # all are building before any is done
        return facts

    threads = [threading.Thread(target=lambda: entries.append(cache.get_or_build(KEY, build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert [entry.facts for entry in entries] == [{"precision": "f32"}] * 4
    assert [path.name for path in folder.iterdir()] == [cache.name_of(KEY)]


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
