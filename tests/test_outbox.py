"""Results on their way out: a sink costs itself alone, and a service that cannot start says why and leaves nothing."""

from __future__ import annotations

import math
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.errors import GatestreamError
from stream.service.config import Config
from stream.service.egress.outbox import JsonLinesFile, Outbox, ResultSink
from stream.service.service import Service

PATIENCE_S = 60.0


class Kept(ResultSink):
    """Keeps what it gets; `done` is set by a record with that number."""

    def __init__(self, last: int) -> None:
        self.got: list[int] = []
        self._last, self.done = last, threading.Event()

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        self.got += [record["frame"] for record in records]
        if self._last in self.got:
            self.done.set()


class Failing(ResultSink):
    """Raises for every record."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        raise self._error


def prediction(frame: int, score: float = 0.5) -> dict[str, Any]:
    return {"type": "prediction", "camera": "a", "frame": frame, "heads": {"gesture": {"now": [["left", score]]}}}


@pytest.mark.parametrize("error", [ValueError("NaN"), RuntimeError("a bug"), OSError(28, "no space"), KeyError("head")])
def test_a_sink_that_raises_anything_costs_itself_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(last=1)
    outbox = Outbox(None, [Failing(error), kept])
    outbox.start()
    outbox.put([prediction(0)])
    outbox.put([prediction(1)])
    assert kept.done.wait(PATIENCE_S)
    assert outbox.alive
    outbox.close()
    assert kept.got == [0, 1]
    assert outbox.counts["failures"] >= 1
    assert "Failing failed" in caplog.text


def test_a_score_that_is_no_number_costs_its_line(tmp_path: Path) -> None:
    kept, path = Kept(last=2), tmp_path / "out.jsonl"
    outbox = Outbox(None, [JsonLinesFile(path), kept])
    outbox.start()
    for frame, score in enumerate((0.5, math.nan, 0.5)):
        outbox.put([prediction(frame, score)])
    assert kept.done.wait(PATIENCE_S)
    assert outbox.alive
    outbox.close()
    assert path.read_text().count('"frame":2') == 1


@pytest.mark.parametrize("taken", ["receive", "results", "health"])
def test_a_service_whose_port_is_taken_says_so_and_leaves_nothing(taken: str, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as other:  # a socket file's path has to be short
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        bound = {"receive": {"bind": ["tcp://127.0.0.1:*"]}, "health": {"bind": "127.0.0.1:0"},
                 "results": {"log": str(tmp_path / "events.db")}}
        bound[taken] |= {"receive": {"bind": [f"tcp://{address}"]}, "health": {"bind": address},
                         "results": {"publish": [f"tcp://{address}"]}}[taken]
        with pytest.raises(GatestreamError) as refusal:
            Service(Config.model_validate(bound))
        assert address in refusal.value.got
        assert list(Path(temporary).iterdir()) == []
    assert threading.active_count() == threads
