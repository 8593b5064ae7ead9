"""gatestream: live streams. Sources -> clock -> recognizer -> window -> events -> sinks, and the command line.

    from stream import Frame, Recognizer, open_source

    with Recognizer.open("gesture") as recognizer, open_source("sim://gestures?seconds=20&realtime=0") as source:
        for frame in source.frames():
            if isinstance(frame, Frame):                                # the other items are gaps of the source
                for item in recognizer.push(frame.image_bgr, frame.captured_at):
                    print(item)                                         # Prediction | Event | Gap
        for event in recognizer.flush():                                # what was still open at the end
            print(event)

Names are imported on first use: `gatestream --help` waits neither for numpy nor for OpenCV."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stream.commands.start import __version__, check_package

if TYPE_CHECKING:
    from engines.errors import (
        DatasetError,
        EngineError,
        FrameError,
        GatestreamError,
        ModelError,
        SinkError,
        SourceError,
        UsageError,
    )
    from stream.events import EventTracker, detect_events
    from stream.frame import Event, Frame, Gap, Prediction, Summary
    from stream.recognizer import Arrival, Recognizer
    from stream.runner import run
    from stream.sources import open_source

check_package("engines")  # another distribution's would fail in ways that do not name it

__all__ = ["Arrival", "DatasetError", "EngineError", "Event", "EventTracker", "Frame", "FrameError", "Gap",
           "GatestreamError", "ModelError", "Prediction", "Recognizer", "SinkError", "SourceError", "Summary",
           "UsageError", "__version__", "detect_events", "open_source", "run"]

_MODULES = {"stream.events": ("EventTracker", "detect_events"), "stream.runner": ("run",),
            "stream.frame": ("Event", "Frame", "Gap", "Prediction", "Summary"),
            "stream.recognizer": ("Arrival", "Recognizer"), "stream.sources": ("open_source",)}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(next((module for module, names in _MODULES.items() if name in names),
                                      "engines.errors")), name)
