"""Teaches a model what a clip store holds, in the background, and keeps every version of it.

    FOLDER/models/3f2a9c01d2e4/2.safetensors, 2.json     of a page whose model has that digest, the newest last
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import engines
from demo.clip_store import PLACE, ClipStore
from engines.errors import GatestreamError, UsageError
from engines.hands import models_installed
from stream.sinks.base import sink_errors
from stream.teaching.teach import teach_folder, write_report

log = logging.getLogger("gatestream.ui")
BASE = "base"  # that learns any action
Opened = TypeVar("Opened")


class Trainer:
    """Trains in a thread of its own, from BASE, or from the model it was given where that can learn more. Methods may
    be called from any thread.

    activate: is called, in that thread, with the file of the model to use from now on; raises GatestreamError where it
    cannot be used, and then that version does not count.
    """

    def __init__(self, store: ClipStore, model: str, engine: str, activate: Callable[[str], None]) -> None:
        self.store, self._activate, self._engine, self._start = store, activate, engine, model
        loaded = engines.load(model)
        self._starts = [BASE] if loaded.contract.pooling is not None else [BASE, loaded.contract.name]
        self._hands = models_installed()
        self._folder = store.folder / "models" / loaded.digest[:12]
        self._thread = threading.Thread()
        self._status = self._error = ""
        self.passed_over = ""  # why what was learnt last is not in use
        self._unusable: set[Path] = set()

    @property
    def model(self) -> str:
        """The model in use: the newest version, or the model it was given."""
        versions = self._versions()
        return str(versions[-1]) if versions else self._start

    def open_newest(self, open_model: Callable[[str], Opened]) -> Opened:
        """What `open_model` returns for the model in use. A version that does not open any more is logged and passed
        over for the one before it. Raises what opening the first of all raises."""
        while self.model != self._start:
            try:
                return open_model(self.model)
            except GatestreamError as error:
                log.warning("%s; in use is what was there before it", error)
                self._unusable.add(Path(self.model))
                self.passed_over = f"What was learnt last is not in use: {error}"
        return open_model(self._start)

    def state(self) -> dict[str, Any]:
        """What a page shows. starts: models to learn from, the usual one first; hands: whether lessons from BASE can
        look at them; report: as `gatestream teach --report` writes it, None before anything was learnt."""
        versions = self._versions()
        report = versions[-1].with_suffix(".json") if versions else None
        return {"clips": [asdict(clip) for clip in self.store.clips()], "busy": self._thread.is_alive(),
                "status": self._status, "error": self._error, "versions": len(versions),
                "starts": self._starts, "hands": self._hands, "folder": str(self.store.folder),
                "report": report.read_text(encoding="utf-8") if report is not None and report.is_file() else None}

    def train(self, start: str = BASE, hands: bool = True) -> None:
        """Starts to train a new version from one of the `starts`. hands: a lesson from BASE may look at them. Raises
        UsageError for another start, and while it is busy."""
        if start not in self._starts:
            raise UsageError(f"a lesson from {start!r}", f"one from {' or '.join(self._starts)}", "reload the page")
        self._start_thread(partial(self._train, start, hands))

    def undo(self) -> None:
        """Deletes the newest version, returns to the one before. Raises UsageError without one, and while busy."""
        if not self._versions():
            raise UsageError("nothing learnt", "something to undo", "learn first")
        self._start_thread(self._undo)

    def _versions(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("*.safetensors")
                       if path.stem.isdigit() and path not in self._unusable), key=lambda path: int(path.stem))

    def _start_thread(self, work: Callable[[], None]) -> None:
        if self._thread.is_alive():
            raise UsageError("a second wish while the model learns", "one at a time", "wait until it is done")
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._status, self._error, self.passed_over = "starting", "", ""
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except GatestreamError as error:
            self._error = str(error)
        except Exception:  # nobody sees what ends a thread
            log.exception("learning has failed")
            self._error = "learning has failed: the server's log says why"
        self._status = ""

    def _train(self, start: str, hands: bool) -> None:
        with sink_errors("making", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem) for path in {*self._versions(), *self._unusable}]
        out = self._folder / f"{max(taken, default=0) + 1}.safetensors"
        new = out.with_suffix(".new")  # a model counts once it is in use
        clips = self.store.clips_folder
        clips.mkdir(parents=True, exist_ok=True)
        result = teach_folder(start if start == BASE else self._start, clips, new, engine=self._engine,
                              name=f"{start}-taught", hands=hands, by=PLACE if start == BASE else None,
                              note=self._set_status)
        self._set_status("trying it")
        with sink_errors("writing", out):
            write_report(result, out.with_suffix(".json"))
            new.replace(out)
        try:
            self._activate(str(out))
        except GatestreamError:
            out.unlink()
            out.with_suffix(".json").unlink()
            raise

    def _undo(self) -> None:
        newest = self._versions()[-1]
        with sink_errors("deleting", newest):
            newest.unlink()
            newest.with_suffix(".json").unlink(missing_ok=True)
        self._activate(self.model)

    def _set_status(self, text: str) -> None:
        self._status = text
