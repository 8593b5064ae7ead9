"""The engine cache: built engines on disk, found again by everything they depend on.

    entry = get_or_build(key, build)          # key: what the engine depends on; build(folder) -> facts writes the files
    entry.folder, entry.facts

One folder an entry, named by the key's hash, holding the files and a `manifest.json` with their checksums. An
entry appears whole (written aside, then renamed); one that is damaged or foreign is built again and never used. The
place is the environment variable GATESTREAM_CACHE, else the user's cache folder; where it cannot be written, engines
work without.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from engines.errors import EngineError, SinkError

log = logging.getLogger("gatestream.engines")

FORMAT = "gatestream-engine/2"
MANIFEST = "manifest.json"
Facts = dict[str, Any]
Build = Callable[[Path], Facts]


@dataclass(frozen=True, slots=True)
class Entry:
    """A built engine on disk. `key`: what it depends on; `facts`: what was found out while building."""

    folder: Path
    key: dict[str, str]
    facts: Facts
    built_at: float
    size_bytes: int


class DamagedEntryError(Exception):
    """An entry whose files are not what its manifest says."""


def cache_dir() -> Path:
    """The cache folder; it need not exist."""
    chosen = os.environ.get("GATESTREAM_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gatestream", appauthor=False)) / "engines"


def name_of(key: Mapping[str, str]) -> str:
    return hashlib.sha256(_canonical(dict(key))).hexdigest()[:32]


def get_or_build(key: Mapping[str, str], build: Build) -> Entry:
    """The entry of a key, built if there is none that can be trusted.

    Safe with several builders at once: each builds aside, the first to finish wins. What `build` raises comes out.
    """
    folder = cache_dir() / name_of(key)
    with contextlib.suppress(FileNotFoundError):
        try:
            return read(folder, key)
        except DamagedEntryError as reason:
            log.warning("engine cache entry %s is damaged (%s): building it again", folder.name, reason)
    _tell_of_another(key)
    try:
        cache_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = Path(tempfile.mkdtemp(dir=cache_dir(), prefix=".building-"))
    except OSError as error:
        log.warning("engine cache %s cannot be written (%s): the engine will be built again next time",
                    cache_dir(), error.strerror)
        return _without_cache(key, build)
    try:
        facts = build(aside)
        try:
            write_manifest(aside, key, facts)
        except OSError as error:
            log.warning("engine cache %s cannot be written (%s)", cache_dir(), error.strerror)
            return _without_cache(key, build)
        _move_in(aside, folder, key)
        return read(folder, key)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tell_of_another(key: Mapping[str, str]) -> None:
    """Says why an engine is built again that the cache holds, built by another version or for another machine."""
    for entry in entries():
        changed = [part for part in key if entry.key.get(part) != key[part]]
        if changed and not {"model", "engine", "precision"} & set(changed):
            log.warning("the cached engine %s is for %s: it is left alone", entry.folder.name, ", ".join(
                f"{part} {entry.key.get(part)} and not {key[part]}" for part in changed))
            return


def _without_cache(key: Mapping[str, str], build: Build) -> Entry:
    folder = _until_exit()
    return Entry(folder, dict(key), build(folder), time.time(), _size(folder))


def _until_exit() -> Path:
    """A folder that goes when the process does: an engine may read its files for as long as it runs."""
    folder = Path(tempfile.mkdtemp(prefix="gatestream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _move_in(aside: Path, folder: Path, key: Mapping[str, str]) -> None:
    """Renames a finished entry into place; another builder's good entry is as good as ours."""
    for _ in range(3):
        try:
            aside.rename(folder)
            return
        except OSError:
            with contextlib.suppress(DamagedEntryError, FileNotFoundError):
                read(folder, key)
                return
            grave = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged-"))
            with contextlib.suppress(OSError):
                folder.rename(grave / folder.name)
            shutil.rmtree(grave, ignore_errors=True)
    raise EngineError(f"a cache entry {folder} that cannot be replaced", "a folder of the engine cache",
                      "delete it, or set GATESTREAM_CACHE to another folder")


def write_manifest(folder: Path, key: Mapping[str, str], facts: Facts) -> None:
    """Writes the manifest over everything in `folder`."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    content = {"format": FORMAT, "key": dict(key), "facts": facts, "built_at": time.time(), "files": files}
    (folder / MANIFEST).write_text(json.dumps({**content, "checksum": hashlib.sha256(_canonical(content)).hexdigest()}))


def read(folder: Path, key: Mapping[str, str] | None = None) -> Entry:
    """Reads and verifies an entry. Raises FileNotFoundError when there is none, else DamagedEntryError."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        content = json.loads((folder / MANIFEST).read_text())
        stated = content.pop("checksum")
        if content["format"] != FORMAT:
            raise DamagedEntryError(f"it is of format {content['format']}, not {FORMAT}")
        if stated != hashlib.sha256(_canonical(content)).hexdigest():
            raise DamagedEntryError("its manifest was changed")
        if key is not None and content["key"] != dict(key):
            raise DamagedEntryError("it belongs to another engine")
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        if present != set(content["files"]):
            raise DamagedEntryError("files are missing or foreign")
        for name, wanted in content["files"].items():
            if _sha256(folder / name) != wanted:
                raise DamagedEntryError(f"{name} was changed")
        return Entry(folder, content["key"], content["facts"], float(content["built_at"]), _size(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error


def entries() -> list[Entry]:
    """Every entry that can be trusted, newest first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in cache_dir().iterdir():
            if not folder.name.startswith("."):
                with contextlib.suppress(DamagedEntryError, FileNotFoundError):
                    found.append(read(folder))
    return sorted(found, key=lambda entry: -entry.built_at)


def pack(entry: Entry, out: Path) -> None:
    """Writes an entry as one file, to be carried to a machine of the same kind. Raises SinkError."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
            whole = Path(aside) / out.name
            with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(entry.folder.iterdir()):
                    archive.write(path, path.name)
            whole.replace(out)
    except OSError as error:
        raise SinkError(f"{out} ({error.strerror})", "a place that can be written",
                        "choose another folder or free some space") from error


def unpack(file: Path, key: Mapping[str, str]) -> Entry:
    """Opens a packed entry beside the cache. Raises EngineError when it is damaged or made for something else."""
    folder = _until_exit()
    try:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        entry = read(folder)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, DamagedEntryError) as error:
        raise EngineError(f"engine file {file} ({error})", "a whole file written by `gatestream export`",
                          "export the engine again") from error
    for part, wanted in key.items():
        if entry.key.get(part) != wanted:
            raise EngineError(f"engine file {file}, made for {part} {entry.key.get(part)}", f"{part} {wanted}",
                              "export the engine again on this machine")
    return entry


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
