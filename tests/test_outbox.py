"""Results on their way out: all that is closed arrives, in order; a sink costs itself alone; a start that fails leaves
nothing."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.errors import GatestreamError, SinkError
from stream.commands.cli import main
from stream.frame import Event, Frame, Gap, HeadScores, OtherRecord, Prediction, Record
from stream.service.config import Config
from stream.service.service import Service
from stream.sinks import outbox as outbox_module
from stream.sinks import sink_thread
from stream.sinks.base import RefusedError, Sink
from stream.sinks.deliveries import read_undelivered, retry_refused
from stream.sinks.jsonl import JsonLines
from stream.sinks.log import EventLog, read_events
from stream.sinks.outbox import Outbox
from stream.stage import Stage

PATIENCE_S = 60.0


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


class Keeper(Sink):
    """Keeps what it gets, if `check` raises nothing."""

    def __init__(self, durable: bool = False, check: Callable[[Record], None] = lambda record: None) -> None:
        self.got: list[Record] = []
        self.durable, self._check = durable, check

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for record in records:
            self._check(record)
            self.got.append(record)

    def close(self) -> None:
        pass

    @property
    def labels(self) -> list[str]:
        return [record.label for record in self.got if isinstance(record, Event)]


def prediction(frame: int, score: float = 0.5) -> Prediction:
    scores = HeadScores((("left", score),), (("left", score),))
    return Prediction("a", frame, 0.0, True, {"gesture": scores}, (), {"total": 1.0}, 0, 0)


def event(label: str, open: bool = False, camera: str = "a", head: str = "gesture") -> Event:
    return Event(camera, head, label, 1.0, 2.0, 0.9, open)


def open_log(path: Path) -> EventLog:
    return EventLog(path, "lamps", "service")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(outbox_module, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(sink_thread, "RETRIES_S", 0.02)


@pytest.mark.parametrize("error", [ValueError("NaN"), RuntimeError("a bug"), OSError(28, "no space"), KeyError("head")])
@pytest.mark.parametrize("durable", [False, True])
def test_a_sink_that_raises_anything_costs_itself_alone(error: Exception, durable: bool, tmp_path: Path,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    def fail(record: Record) -> None:
        raise error

    kept = Keeper()
    with open_log(tmp_path / "log.db") as log:
        outbox = Outbox(log, {"failing": Keeper(durable, fail), "kept": kept}, [Keeper(check=fail)])
        outbox.start()
        outbox.put([event("x"), prediction(0)])
        outbox.put([prediction(1)])
        wait(lambda: len(kept.got) == 3)
        wait(lambda: outbox.sinks[0].counts["failures"])
        assert outbox.alive
        assert "kept" not in outbox.faults
        outbox.close()
    assert "failing" in caplog.text


def test_a_sink_that_hangs_costs_itself_alone_and_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sink_thread, "HANGS_AFTER_S", 0.05)
    monkeypatch.setattr(outbox_module, "LOOKS_EVERY_S", 0.01)
    monkeypatch.setattr(sink_thread, "WAITING", 10)
    hold, kept, log = threading.Event(), Keeper(), EventLog(tmp_path / "events.db", "fake", "service")
    outbox = Outbox(log, {"hanging": Keeper(check=lambda record: hold.wait(PATIENCE_S) and None), "kept": kept})
    outbox.start()
    for frame in range(50):
        outbox.put([prediction(frame)])
        wait(lambda: len(kept.got) > frame)  # noqa: B023 - called in this turn
    wait(lambda: "hangs" in outbox.faults.get("hanging", ""))
    assert outbox.state()["hanging"]["dropped"] >= 30
    assert list(outbox.faults) == ["hanging"]
    wait(lambda: "hanging: it hangs" in caplog.text)  # though nothing comes any more
    hold.set()
    outbox.close()


def test_a_score_that_is_no_number_costs_its_line(tmp_path: Path) -> None:
    kept, path = Keeper(), tmp_path / "out.jsonl"
    with open_log(tmp_path / "log.db") as log:
        outbox = Outbox(log, {"jsonl": JsonLines(path, append=True), "kept": kept})
        outbox.start()
        for frame, score in enumerate((0.5, math.nan, 0.5)):
            outbox.put([prediction(frame, score), replace(event("left"), score=score)])
        wait(lambda: len(kept.got) == 5)
        wait(lambda: '"frame":2' in path.read_text())
        outbox.close(PATIENCE_S)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("frame") for line in lines] == [0, None, 2, None]
    assert len(read_events(tmp_path / "log.db")) == 2


def test_records_of_other_types_pass_and_stages_change_records_before_the_log(tmp_path: Path) -> None:
    class Rename(Stage):
        def process(self, frame: Frame | None, records: Sequence[Record]) -> Sequence[Record]:
            return [replace(one, label=one.label.upper()) if isinstance(one, Event) else one for one in records]

    class Broken(Stage):
        def process(self, frame: Frame | None, records: Sequence[Record]) -> Sequence[Record]:
            raise RuntimeError("a bug")

    step = OtherRecord("a", {"type": "step", "camera": "a", "name": "wash"})
    kept, path = Keeper(), tmp_path / "out.jsonl"
    with open_log(tmp_path / "log.db") as log:
        outbox = Outbox(log, {"jsonl": JsonLines(path), "kept": kept}, stages=[Broken(), Rename()])
        outbox.start()
        outbox.put([event("left"), step])
        wait(lambda: len(kept.got) == 2)
        outbox.close(PATIENCE_S)
    assert kept.got[1] is step
    assert json.loads(path.read_text().splitlines()[1]) == step.values
    assert kept.labels == ["LEFT"] == [each.event.label for each in read_events(tmp_path / "log.db")]


def test_an_open_event_has_the_id_that_it_closes_with_and_that_the_log_has(tmp_path: Path) -> None:
    kept, durable = Keeper(), Keeper(durable=True)
    with open_log(tmp_path / "log.db") as log:
        outbox = Outbox(log, {"kept": kept, "durable": durable}, names_clips=True)
        outbox.start()
        outbox.put([event("up", open=True), event("up", open=True, camera="b")])
        outbox.put([event("left", open=True), event("left"), event("right", open=True), event("right", camera="b")])
        wait(lambda: len(kept.got) == len(durable.got) == 6)
        outbox.close(PATIENCE_S)
    for sink in (kept, durable):
        a, b, a_, a_closed, other, b_closed = (one.id for one in sink.got if isinstance(one, Event))
        assert a == a_ == a_closed
        assert b == b_closed
        assert len({a, b, other}) == 3
    assert [each.id for each in read_events(tmp_path / "log.db")] == [a, b]
    assert all(one.clip for one in kept.got if isinstance(one, Event))


def test_a_durable_sink_gets_all_in_order_however_often_it_fails_and_across_restarts(tmp_path: Path) -> None:
    """Open events and predictions stay in their places among what comes from the log."""
    fails = 3

    def check(record: Record) -> None:
        nonlocal fails
        if isinstance(record, Event) and not record.open and fails:
            fails -= 1
            raise SinkError("a broker that is away", "one", "wait")

    for kill in (True, False):
        sink = Keeper(durable=True, check=check)
        with open_log(tmp_path / "log.db") as log:
            outbox = Outbox(log, {"mqtt": sink})
            if kill:  # logged, and the process is gone
                outbox._hand_on([event("0"), Gap("a", 1.0, 2.0, "reset"), event("1")])
                outbox.sinks[0].deliveries.close()  # type: ignore[union-attr]
                continue
            outbox.start()
            outbox.put([event("2", open=True), event("2"), prediction(1), event("3", open=True), event("3")])
            wait(lambda: len(sink.got) == 8)  # noqa: B023 - called in this turn
            assert outbox.faults == {}
            outbox.close(PATIENCE_S)
        assert sink.labels == ["0", "1", "2", "2", "3", "3"]
        assert [isinstance(one, Prediction) for one in sink.got].index(True) == 5
    assert read_undelivered(tmp_path / "log.db") == []


def test_what_is_refused_for_good_blocks_nothing_is_listed_and_can_be_retried(tmp_path: Path) -> None:
    path, takes_all = tmp_path / "log.db", threading.Event()

    def check(record: Record) -> None:
        if isinstance(record, Event) and record.label == "bad" and not takes_all.is_set():
            raise RefusedError("status 422 from the webhook", "200", "check")

    sink = Keeper(durable=True, check=check)
    with open_log(path) as log:
        outbox = Outbox(log, {"webhook": sink})
        outbox.start()
        outbox.put([event("good"), event("bad"), event("better")])
        wait(lambda: sink.labels == ["good", "better"])
        wait(lambda: outbox.state()["webhook"]["refused"] == 1)
        wait(lambda: len(read_undelivered(path)) == 1)
        [left] = read_undelivered(path)
        assert isinstance(left.record, Event)
        assert (left.sink, left.record.label, left.reason) == (
            "webhook", "bad", "status 422 from the webhook; wanted 200; check")
        takes_all.set()
        assert retry_refused(path) == 1
        wait(lambda: sink.labels == ["good", "better", "bad"])
        wait(lambda: read_undelivered(path) == [])
        outbox.close(PATIENCE_S)


def test_a_sink_that_is_new_gets_no_history(tmp_path: Path) -> None:
    first, second = Keeper(durable=True), Keeper(durable=True)
    for sinks in ({"one": first}, {"one": first, "two": second}):
        with open_log(tmp_path / "log.db") as log:
            outbox = Outbox(log, sinks)
            outbox.start()
            outbox.put([event(str(len(sinks)))])
            wait(lambda: first.labels[-1:] == [str(len(sinks))])  # noqa: B023 - called in this turn
            outbox.close(PATIENCE_S)
    assert (first.labels, second.labels) == (["1", "2"], ["2"])


def test_a_sink_that_is_no_more_is_told_of_and_holds_nothing_up(tmp_path: Path,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    def fail(record: Record) -> None:
        raise SinkError("no broker", "one", "wait")

    path, again = tmp_path / "log.db", Keeper(durable=True)
    sinks: list[dict[str, Sink]] = [{"mqtt": Keeper(True, fail)}, {}, {"mqtt": again}]
    for turn in sinks:
        with open_log(path) as log:
            outbox = Outbox(log, turn)
            outbox.start()
            outbox.put([event(str(len(read_events(path))))])
            wait(lambda: len(read_events(path)) > sinks.index(turn))  # noqa: B023 - called in this turn
            wait(lambda: not turn or turn["mqtt"] is not again or again.got)  # noqa: B023
            outbox.close()
    assert again.labels == ["2"]
    assert "1 events and gaps are not delivered to mqtt" in caplog.text


def test_a_log_is_kept_as_small_as_is_asked_for_without_losing_what_a_sink_waits_for(tmp_path: Path) -> None:
    def fail(record: Record) -> None:
        if isinstance(record, Event) and record.label == "waits":
            raise SinkError("no broker", "one", "wait")

    path = tmp_path / "log.db"
    old = [replace(event(label), started_at=1e9, ended_at=1e9 + 1) for label in ("old", "waits")]
    new = replace(event("new"), started_at=time.time(), ended_at=time.time())
    with open_log(path) as log:
        outbox = Outbox(log, {"mqtt": Keeper(True, fail)}, keep=(30.0, None))
        outbox._hand_on([*old, new])
        outbox.start()  # compacts, and then once an hour
        wait(lambda: outbox.state()["mqtt"]["failures"])
        wait(lambda: outbox._compact_at > time.monotonic() + 60)
        outbox._compact()
        outbox.close()
    assert [each.event.label for each in read_events(path)] == ["waits", "new"]


def test_events_wait_while_the_log_cannot_be_written_and_all_else_goes_on(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    sink, append, full = Keeper(durable=True), EventLog.append, threading.Event()

    def append_if_there_is_room(log: EventLog, *arguments: Any) -> list[int]:
        if full.is_set():
            raise SinkError("no space", "some", "make some")
        return append(log, *arguments)

    monkeypatch.setattr(EventLog, "append", append_if_there_is_room)
    monkeypatch.setattr(outbox_module, "WAITING", 5)
    with open_log(tmp_path / "log.db") as log:
        outbox = Outbox(log, {"webhook": sink})
        outbox.start()
        full.set()
        for number in range(8):
            outbox.put([event(str(number)), prediction(number)])
            wait(lambda: len(sink.got) > number)  # noqa: B023 - called in this turn
        wait(lambda: "no space" in outbox.faults.get("log", ""))
        assert sink.labels == []
        full.clear()
        wait(lambda: len(sink.labels) == 5)
        wait(lambda: outbox.faults == {})
        assert sink.labels == ["3", "4", "5", "6", "7"]
        assert outbox.counts["events dropped"] == 3
        outbox.close(PATIENCE_S)


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_log_that_is_moved_away_is_begun_anew_and_nothing_is_lost(how: str, tmp_path: Path) -> None:
    """What a sink has not got or has refused is in the new one."""
    path, sink, lines, blocked = tmp_path / "log.db", Keeper(durable=True), tmp_path / "out.jsonl", threading.Event()

    def check(record: Record) -> None:
        if isinstance(record, Event) and record.label == "bad":
            raise RefusedError("422", "200", "check")
        if not blocked.is_set():
            raise SinkError("no broker", "one", "wait")

    slow = Keeper(durable=True, check=check)
    with open_log(path) as log:
        outbox = Outbox(log, {"webhook": sink, "jsonl": JsonLines(lines, append=True), "mqtt": slow})
        outbox.start()
        outbox.put([event("bad"), event("0"), Gap("a", 1.0, 2.0, "reset")])
        wait(lambda: sink.labels == ["bad", "0"] and lines.read_text().count("\n") == 3)
        wait(lambda: outbox.state()["mqtt"]["refused"])
        for file in (path, lines):
            file.rename(tmp_path / f"old {file.name}") if how == "moved" else file.unlink()
        for label in ("1", "2"):
            outbox.put([event(label)])
            wait(lambda: sink.labels[-1] == label)  # noqa: B023 - called in this turn
        wait(lambda: lines.exists() and lines.read_text().count("\n") == 2)
        blocked.set()
        wait(lambda: slow.labels == ["0", "1", "2"])
        outbox.close(PATIENCE_S)
    assert [isinstance(one, Gap) for one in slow.got] == [False, True, False, False]
    assert {each.event.label for each in read_events(path)} == {"bad", "0", "1", "2"}  # the sinks' and the new
    ids = {one.id for one in sink.got if isinstance(one, Event)}
    assert len(ids) == 4
    assert {one.id for one in slow.got if isinstance(one, Event)} < ids
    assert [(left.sink, left.reason) for left in read_undelivered(path)] == [("mqtt", "422; wanted 200; check")]


PROGRAM = """
import sys, threading, time
from pathlib import Path
from stream.frame import Event
from stream.sinks.outbox import Outbox
from stream.sinks.log import EventLog
from stream.sinks.webhook import Webhook

log = EventLog(sys.argv[1], "lamps", "service")
outbox = Outbox(log, {"webhook": Webhook(sys.argv[2])})
outbox.start()
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    outbox.put([Event("a", "gesture", str(number), 1.0, 2.0, 0.9, False)])
    while outbox._records or len(outbox.sinks[0]._waiting) > 50:
        time.sleep(0.0005)
    print(number, flush=True)
outbox.close(60.0)
"""


def test_nothing_is_lost_when_the_process_is_killed_again_and_again(tmp_path: Path) -> None:
    """Killed at any moment, what was logged is posted at least once, in order, by the next process."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    posted: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append((content["id"], content["label"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    kills, each, path = 4, 40, tmp_path / "log.db"
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        done = 0
        for turn in range(kills + 1):
            last = turn == kills
            arguments = [str(path), f"http://127.0.0.1:{server.server_port}", str(done), str(done + 5 * each)]
            with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if not last and int(line) >= done + each:
                        process.kill()
                        break
            logged = [each.event.label for each in read_events(path)] if path.exists() else []
            done = int(logged[-1]) + 1
        server.shutdown()
        thread.join()
    logged_ids = [found.id for found in read_events(path)]
    first_times = list(dict.fromkeys(id for id, _ in posted))
    assert first_times == logged_ids  # all of them, in order
    assert len(posted) - len(first_times) <= kills  # what was under way at a kill may come twice


@pytest.mark.parametrize("taken", ["receive", "results", "health"])
def test_a_service_whose_port_is_taken_says_so_and_leaves_nothing(taken: str, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    with tempfile.TemporaryDirectory() as temporary, closing(socket.socket()) as other:  # a socket file's path is short
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


def test_what_is_undelivered_is_listed_and_retried_by_command(tmp_path: Path,
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.db"

    def refuse(record: Record) -> None:
        raise RefusedError("status 422", "200", "check")

    def fail(record: Record) -> None:
        raise SinkError("no broker", "one", "wait")

    with open_log(path) as log:
        outbox = Outbox(log, {"webhook": Keeper(True, refuse), "mqtt": Keeper(True, fail)})
        outbox.start()
        outbox.put([event("left"), Gap("cell-3", 1.0, 2.0, "reset")])
        wait(lambda: outbox.state()["webhook"]["refused"] == 2 and outbox.faults)
        outbox.close(PATIENCE_S)
    id = read_events(path)[0].id
    assert main(["events", str(path), "--undelivered"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"mqtt: a: {id} left: waits", "mqtt: cell-3: gap reset: waits",
        f"webhook: a: {id} left: refused: status 422; wanted 200; check",
        "webhook: cell-3: gap reset: refused: status 422; wanted 200; check"]
    assert main(["events", str(path), "--retry"]) == 0
    assert capfd.readouterr().out == f"{path}: 2 refused records will be sent once more\n"
    kept = Keeper(True)
    with open_log(path) as log:
        outbox = Outbox(log, {"webhook": kept})
        outbox.start()
        wait(lambda: len(kept.got) == 2)
        outbox.close(PATIENCE_S)
