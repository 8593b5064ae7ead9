"""Laws of all sinks, and of JSON lines: what was recognised is on disk, and faults are said in one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import GAP, PREDICTION, SUMMARY, event

from engines.errors import SinkError
from stream.frame import Gap, Record
from stream.sinks.base import Sink
from stream.sinks.jsonl import JsonLines
from stream.sinks.log import EventLog
from stream.sinks.video import AnnotatedVideo

# ---- every sink ------------------------------------------------------------------------------------------------

SINKS: dict[str, Callable[[Path], Sink]] = {
    "out.jsonl": JsonLines,
    "out.db": lambda path: EventLog(path, "gesture", "sim://gestures"),
    "out.mp4": AnnotatedVideo,
}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("case", ["folder", "below a file", "no such folder"])
def test_an_output_that_cannot_be_written_is_refused_when_built(tmp_path: Path, name: str, case: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / name).mkdir()
    path = {"folder": tmp_path / name, "below a file": tmp_path / "file" / name,
            "no such folder": tmp_path / "absent" / name}[case]
    with pytest.raises(SinkError) as refusal:
        SINKS[name](path)
    assert str(path) in refusal.value.got
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", SINKS)
def test_closing_twice_and_writing_after_close_do_nothing(tmp_path: Path, name: str) -> None:
    sink = SINKS[name](tmp_path / name)
    sink.close()
    sink.close()
    sink.write(None, [event()])


# ---- JSON lines ------------------------------------------------------------------------------------------------

EXAMPLES: list[tuple[Record, dict[str, Any]]] = [
    (PREDICTION, {"type": "prediction", "camera": "0", "frame": 12, "captured_at": 1.6, "warm": True,
                  "heads": {"gesture": {"now": [["left", 0.91], ["up", 0.04]], "window": [["left", 0.88]]}},
                  "clips": [0.1, 0.7, 0.9], "latency_ms": {"total": 7.9, "engine": 6.2}, "dropped": 0, "held": 0}),
    (event(), {"type": "event", "camera": "0", "head": "gesture", "label": "left", "started_at": 1.2,
               "ended_at": 2.1, "score": 0.93, "open": False}),
    (GAP, {"type": "gap", "camera": "0", "at": 7.5, "seconds": 3.2, "action": "reset"}),
    (SUMMARY, {"type": "summary", "camera": "0", "frames": 350, "predictions": 120, "events": 4, "dropped": 0,
               "fps": 101.2, "latency_ms": {"p50": 6.9, "p95": 8.1, "p99": 9.0}}),
]


def test_each_record_is_one_line_of_the_public_format(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.write(None, [record for record, _ in EXAMPLES])
        written = path.read_text()  # before close: a line can be read as soon as it is written
    assert [json.loads(line) for line in written.splitlines()] == [wanted for _, wanted in EXAMPLES]
    assert [list(json.loads(line)) for line in written.splitlines()] == [list(wanted) for _, wanted in EXAMPLES]


def test_dash_is_standard_output_and_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines("-") as sink:
        sink.write(None, [GAP])
    print("more")
    assert capsys.readouterr().out.splitlines() == [json.dumps(GAP.as_json(), separators=(",", ":")), "more"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.write(None, [GAP])
        with pytest.raises(SinkError, match="finite"):
            sink.write(None, [Gap("0", 1.0, float("nan"), "reset")])
    assert len(path.read_text().splitlines()) == 1


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    program = ("from stream.frame import Gap; from stream.sinks.base import OutputClosed\n"
               "from stream.sinks.jsonl import JsonLines\n"
               "sink = JsonLines('-')\n"
               "try:\n"
               "    while True: sink.write(None, [Gap('0', 1.0, 2.0, 'reset')])\n"
               "except OutputClosed as end:\n"
               "    sink.close(); raise SystemExit(end.exit_code)\n")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.wait(timeout=60) == 0
        assert writer.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_json_lines_on_a_full_disk_is_a_sink_error() -> None:
    with JsonLines("/dev/full") as sink, pytest.raises(SinkError, match="/dev/full"):
        sink.write(None, [GAP])
