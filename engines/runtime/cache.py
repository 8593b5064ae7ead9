"""Built engines on disk, found again by everything they depend on.
One folder an entry, named by the key's hash, with its files and a `manifest.json` of their checksums. An entry appears
whole; a damaged one is never used but built again. Of several processes that want one, one builds and the others wait.
What is not used for UNUSED_S goes, and above LIMIT_BYTES what was not used for longest."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from engines.errors import EngineError
from engines.model.file import whole_file
from engines.runtime.temporary import temporary_dir

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("gatestream.engines")

FORMAT = "gatestream-engine/2"
MANIFEST = "manifest.json"
LIMIT_BYTES = 5 * 10**9
UNUSED_S = 90 * 24 * 3600.0
BUILDING = ".building-"
SUBSTITUTES = ("/var/tmp", tempfile.gettempdir())  # the first is kept when the machine starts again
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A built engine on disk."""

    folder: Path
    key: dict[str, str]  # what it depends on
    facts: Facts  # what was found out while building
    built_at: float
    size_bytes: int


class DamagedEntryError(Exception):
    """An entry whose files are not what its manifest says."""


def cache_dir() -> Path:
    """Where engines are built: GATESTREAM_CACHE, else the user's cache folder, which need not exist; where that cannot
    be written, such as in a home that is read-only, a folder of this user's alone among temporary files."""
    return cache_dirs()[-1]


def cache_dirs() -> tuple[Path, ...]:
    """Where engines are looked for: what was chosen, and what takes its place where that cannot be written."""
    chosen = os.environ.get("GATESTREAM_CACHE")
    wanted = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gatestream", appauthor=False)) / "engines"
    there = next(path for path in (wanted.absolute(), *wanted.absolute().parents) if path.exists())
    return (wanted,) if _is_writable(there) else (wanted, *filter(None, [_substitute_dir()]))


def _is_writable(folder: Path) -> bool:
    """By trying: permissions do not say it of root, nor of a file system that is read-only or far away."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _substitute_dir() -> Path | None:
    """Only what this user made and nobody else may write: others can make folders there, too."""
    for place in SUBSTITUTES if hasattr(os, "getuid") else ():
        folder = Path(place) / f"gatestream-engines-{os.getuid()}"
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
                return folder
    return None


def make_private_dir(folder: Path) -> Path:
    """Creates a folder and what is missing above it, for this user alone: TensorRT trusts no other. Raises OSError."""
    for path in [*reversed(folder.parents), folder]:
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)
    return folder


def get_or_build(key: Mapping[str, str], build: Callable[[Path], Facts]) -> Entry:
    """The entry of a key, built if there is none that can be trusted: `build` writes files into a folder, and returns
    facts about them. What it raises comes out."""
    places, name = cache_dirs(), _checksum(dict(key))[:32]
    for place in places:
        with contextlib.suppress(FileNotFoundError, DamagedEntryError):
            return _use(place / name, key)
    folder = places[-1] / name
    if len(places) > 1:
        log.warning("engine cache %s cannot be written: engines are kept in %s", *places)
    try:
        make_private_dir(folder.parent)
        lock = _lock_of(folder)
        try:
            held = lock.acquire(timeout=0)
        except TimeoutError:
            log.warning("another process is building an engine: waiting for it")
            held = lock.acquire()
        with held:
            return _use_or_build(folder, key, build)
    except OSError as error:
        log.warning("engine cache %s cannot be written (%s): the engine will be built again next time",
                    folder.parent, error.strerror or error)
    outside = make_temporary_dir()
    return Entry(outside, dict(key), build(outside), time.time(), _size(outside))


def _use(folder: Path, key: Mapping[str, str]) -> Entry:
    entry = read(folder, key)
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)  # its time of last use, see `_prune`
    return entry


def _use_or_build(folder: Path, key: Mapping[str, str], build: Callable[[Path], Facts]) -> Entry:
    try:
        return _use(folder, key)  # built while this process waited
    except FileNotFoundError:
        _log_other_versions(key)
    except DamagedEntryError as reason:
        log.warning("engine cache entry %s is damaged (%s): building it again", folder.name, reason)
        shutil.rmtree(folder)
    aside = folder.with_name(BUILDING + folder.name)
    shutil.rmtree(aside, ignore_errors=True)  # of a builder that was killed
    try:
        aside.mkdir(mode=0o700)
        write_manifest(aside, key, build(aside))
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _prune(folder)
    return read(folder, key)


def _lock_of(folder: Path) -> BaseFileLock:
    """Held by who builds an entry, until its process ends. One of sixteen files, so that they do not add up."""
    from filelock import FileLock

    return FileLock(folder.with_name(f".lock-{folder.name[0]}"))


def _prune(newest: Path) -> None:
    """Removes what killed builders left, entries unused for long, and above the limit the longest unused."""
    for aside in newest.parent.glob(f"{BUILDING}*"):
        lock = _lock_of(newest.with_name(aside.name.removeprefix(BUILDING)))
        with contextlib.suppress(OSError), lock.acquire(timeout=0):  # a lock that is held is an OSError too
            shutil.rmtree(aside)
    found = []
    for folder in {*newest.parent.glob("[0-9a-f]" * 32)} - {newest}:
        with contextlib.suppress(OSError):
            used = folder / MANIFEST if (folder / MANIFEST).exists() else folder
            found.append((used.stat().st_mtime, _size(folder), folder))
    total = _size(newest)
    for used_at, size, folder in sorted(found, reverse=True):
        total += size
        if total > LIMIT_BYTES or time.time() - used_at > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
            log.warning("removed engine %s from the cache: %.0f MB, last used %s", folder.name, size / 1e6,
                        time.strftime("%Y-%m-%d", time.localtime(used_at)))


def _log_other_versions(key: Mapping[str, str]) -> None:
    """Says why an engine is built again that the cache holds, built by another version or for another machine."""
    for entry in entries():
        changed = [part for part in key if entry.key.get(part) != key[part]]
        if changed and not {"model", "engine", "precision"} & set(changed):
            log.warning("the cached engine %s is for %s: it is left alone", entry.folder.name, ", ".join(
                f"{part} {entry.key.get(part)} and not {key[part]}" for part in changed))
            return


def make_temporary_dir() -> Path:
    """A folder that goes when the process does: an engine may read its files for as long as it runs."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_dir())


def write_manifest(folder: Path, key: Mapping[str, str], facts: Facts) -> None:
    """Writes the manifest over everything in `folder`."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    content = {"format": FORMAT, "key": dict(key), "facts": facts, "built_at": time.time(), "files": files}
    (folder / MANIFEST).write_text(json.dumps({**content, "checksum": _checksum(content)}))


def read(folder: Path, key: Mapping[str, str] | None = None, verify: bool = True) -> Entry:
    """Reads an entry, and verifies its files. Raises FileNotFoundError when there is none, else DamagedEntryError."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        content = json.loads((folder / MANIFEST).read_text())
        stated = content.pop("checksum")
        if content["format"] != FORMAT:
            raise DamagedEntryError(f"it is of format {content['format']}, not {FORMAT}")
        if stated != _checksum(content):
            raise DamagedEntryError("its manifest was changed")
        if key is not None and content["key"] != dict(key):
            raise DamagedEntryError("it belongs to another engine")
        if verify:
            if {path.name for path in folder.iterdir()} != {MANIFEST, *content["files"]}:
                raise DamagedEntryError("files are missing or foreign")
            if changed := [name for name, wanted in content["files"].items() if _sha256(folder / name) != wanted]:
                raise DamagedEntryError(f"{changed[0]} was changed")
        return Entry(folder, content["key"], content["facts"], float(content["built_at"]), _size(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error


def entries() -> list[Entry]:
    """Every entry, newest first. Manifests alone are read: an entry's files are verified when it is used."""
    found = []
    for manifest in (path for place in cache_dirs() for path in place.glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(DamagedEntryError, FileNotFoundError):
            found.append(read(manifest.parent, verify=False))
    return sorted(found, key=lambda entry: -entry.built_at)


def pack(entry: Entry, out: Path) -> None:
    """Writes an entry as one file, to be carried to a machine of the same kind. Raises SinkError."""
    with whole_file(out) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(entry.folder.iterdir()):
            archive.write(path, path.name)


def unpack(file: Path, key: Mapping[str, str]) -> Entry:
    """Opens a packed entry beside the cache. Raises EngineError when it is damaged or made for something else."""
    folder = make_temporary_dir()
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


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
