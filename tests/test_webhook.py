"""The webhook: closed events are posted in order until they are accepted, and what is refused for good is parked."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engines.errors import SinkError, UsageError
from stream.frame import Event, Gap
from stream.sinks import sink_thread
from stream.sinks.base import RefusedError
from stream.sinks.deliveries import read_undelivered
from stream.sinks.log import EventLog
from stream.sinks.outbox import Outbox
from stream.sinks.webhook import SIGNATURE, TIMESTAMP, Webhook

PATIENCE_S = 10.0


def event(number: int, open: bool = False) -> Event:
    return Event("a", "gesture", "left", 1.0, 2.0, 0.9, open, id=f"abc-{number}")


class Receiver(HTTPServer):
    """Notes what is posted; answers with `status`."""

    status = 200

    def __init__(self) -> None:
        self.got: list[str] = []
        self.requests: list[tuple[Message, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.headers, body))
                receiver.got.append(json.loads(body)["id"])
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


def test_events_are_posted_one_by_one_and_what_is_wrong_says_whether_to_try_again(receiver: Receiver) -> None:
    webhook = Webhook(f"http://127.0.0.1:{receiver.server_port}/hook")
    webhook.write(None, [event(1, open=True), Gap("a", 1.0, 2.0, "reset"), event(1), event(2)])
    assert receiver.got == ["abc-1", "abc-2"]
    for status, error in ((500, SinkError), (503, SinkError), (408, SinkError), (429, SinkError), (301, RefusedError),
                          (400, RefusedError), (404, RefusedError), (422, RefusedError)):
        receiver.status = status
        with pytest.raises(SinkError, match=str(status)) as found:
            webhook.write(None, [event(3)])
        assert type(found.value) is error
    webhook.close()
    gone = Webhook("http://127.0.0.1:9/")
    with pytest.raises(SinkError, match="ConnectError") as unreachable:
        gone.write(None, [event(1)])
    assert type(unreachable.value) is SinkError
    gone.close()


def test_events_carry_headers_a_token_and_a_signature_that_others_can_check(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "secret").write_text("key")
    webhook = Webhook(f"http://127.0.0.1:{receiver.server_port}", {"X-Site": "north"}, tmp_path / "token",
                      tmp_path / "secret")
    webhook.write(None, [event(1)])
    webhook.close()
    headers, body = receiver.requests[0]
    assert (headers["X-Site"], headers["Authorization"], headers["Content-Type"]) == (
        "north", "Bearer abc", "application/json")
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", "key", "-hex"], check=True, capture_output=True,
                            input=headers[TIMESTAMP].encode() + b"." + body).stdout.decode().split()[-1]
    assert headers[SIGNATURE] == signed
    assert abs(int(headers[TIMESTAMP]) - time.time()) < 60


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none, which cannot be read"):
        Webhook("http://127.0.0.1:9/", token_file=tmp_path / "none")


def test_events_are_posted_until_they_are_accepted(receiver: Receiver, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Server faults block until they are over; what is refused for good blocks nothing."""
    monkeypatch.setattr(sink_thread, "BACK_OFF_S", (0.01, 0.02))
    receiver.status = 500
    with EventLog(tmp_path / "log.db", "lamps", "service") as log:
        outbox = Outbox(log, {"webhook": Webhook(f"http://127.0.0.1:{receiver.server_port}")})
        outbox.start()
        outbox.put([replace(event(0), label=label, id=None) for label in ("one", "two", "three")])
        outbox.put([replace(event(0), open=True)] * 100)  # which it passes over
        wait(lambda: len(receiver.got) >= 4)
        assert len(set(receiver.got)) == 1
        assert "500" in outbox.faults["webhook"]
        assert outbox.state()["webhook"]["waiting"] == 0
        receiver.status = 422
        wait(lambda: outbox.state()["webhook"]["refused"] == 3)
        receiver.status, refused = 200, list(dict.fromkeys(receiver.got))
        outbox.put([replace(event(0), label="four", id=None)])
        wait(lambda: outbox.state()["webhook"]["delivered"] == 1)
        assert outbox.faults == {}
        outbox.close(PATIENCE_S)
    assert [record.id for _, record, *_ in read_undelivered(tmp_path / "log.db")] == refused  # type: ignore[union-attr]
