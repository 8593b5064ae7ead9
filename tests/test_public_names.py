"""What can be imported from `stream` and `engines`, how fast, and that the examples in their docstrings run."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from textwrap import dedent

import pytest

import engines
import engines.errors
import stream
from stream.frame import Event, Frame
from stream.recognizer import Recognizer
from stream.sources import open_source
from stream.sources.simulated import SimulatedSource

ERRORS = {name for name, value in vars(engines.errors).items() if inspect.isclass(value)
          and issubclass(value, Exception)}
CAMERA = "sim://gestures?realtime=0&rate=15&width=160&height=120"


def test_stream_offers_its_public_names() -> None:
    assert set(dir(stream)) == set(stream.__all__) == {
        "Arrival", "Event", "EventTracker", "Frame", "Gap", "Prediction", "Recognizer", "Summary", "__version__",
        "detect_events", "open_source", "run", *ERRORS}
    for name in dir(stream):
        assert getattr(stream, name) is not None
    for name in ERRORS:
        assert getattr(stream, name) is getattr(engines.errors, name)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", stream.__version__)
    with pytest.raises(AttributeError, match="nothing"):
        stream.nothing  # noqa: B018


def test_engines_offers_its_public_names() -> None:
    assert set(dir(engines)) == set(engines.__all__)
    for name in dir(engines):
        assert callable(getattr(engines, name)) or inspect.ismodule(getattr(engines, name))
    with pytest.raises(AttributeError, match="nothing"):
        engines.nothing  # noqa: B018


def test_importing_stream_loads_neither_torch_nor_numpy_nor_opencv() -> None:
    code = "import sys, stream; dir(stream); print(sorted({'torch', 'numpy', 'cv2', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["run"], ["train"], ["data", "check"]])
def test_help_loads_neither_torch_nor_numpy_nor_opencv(command: list[str]) -> None:
    code = (f"import sys; from stream.commands.cli import main; main([*{command}, '--help'])\n"
            "print(sorted({'torch', 'numpy', 'cv2', 'av'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def seconds_in_a_gesture() -> float:
    """A length of the simulated stream that ends while a gesture is made."""
    source = SimulatedSource(CAMERA)
    span = source.spans(30)[1]
    return round((span.started_at + 2 * span.ended_at) / 3, 1)


def printed(code: str) -> list[str]:
    out = io.StringIO()
    with redirect_stdout(out):
        exec(f"from stream import *\n{code}", {})
    return out.getvalue().splitlines()


@pytest.mark.parametrize("documented", [stream, Recognizer], ids=["stream", "Recognizer"])
def test_the_docstrings_example_prints_every_item_and_the_last_event_too(
        documented: object, engine_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", engine_cache)
    address = f"{CAMERA}&seconds={seconds_in_a_gesture()}"
    example = re.search(r"(?m)^    (?:from|with) .*(?:\n    .*|\n$)*", inspect.getdoc(documented) or "")
    assert example is not None
    code, addresses = re.subn(r'"sim://[^"]*"', f'"{address}"', dedent(example.group()))
    assert addresses == 1
    with Recognizer.open("gesture") as recognizer, open_source(address) as source:
        pushed = [item for frame in source.frames() if isinstance(frame, Frame)
                  for item in recognizer.push(frame.image_bgr, frame.captured_at)]
        last = recognizer.flush()
    assert last, "the stream should end within an event"
    timeless = [re.sub(r"latency_ms=\{.*?\}", "", str(item)) for item in [*pushed, *last]]
    assert [re.sub(r"latency_ms=\{.*?\}", "", line) for line in printed(code)] == timeless
    assert any(isinstance(item, Event) for item in pushed)
