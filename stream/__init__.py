"""gatestream: what is in motion. Sources -> clock -> recognizer -> window -> events -> sinks, and the command line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stream.commands.start import __version__ as __version__
from stream.commands.start import check_package

if TYPE_CHECKING:
    from stream.events import EventTracker, detect_events
    from stream.frame import Event, Frame, Gap, Prediction, Summary
    from stream.recognizer import Recognizer
    from stream.runner import run
    from stream.sources import open_source

check_package("engines")  # another distribution's would fail in ways that do not name it

__all__ = ["Event", "EventTracker", "Frame", "Gap", "Prediction", "Recognizer", "Summary", "detect_events",
           "open_source", "run"]

_HOMES = {"EventTracker": "events", "detect_events": "events", "Event": "frame", "Frame": "frame", "Gap": "frame",
          "Prediction": "frame", "Summary": "frame", "Recognizer": "recognizer", "run": "runner",
          "open_source": "sources"}


def __getattr__(name: str) -> Any:
    # Imported on first use: `gatestream --help` would otherwise wait for numpy and OpenCV.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
