"""The webhook: closed events are posted in order until they are accepted, and the end waits for nobody."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from stream.service.egress import outbox
from stream.service.egress.outbox import Webhook

PATIENCE_S = 10.0


def event(number: int, open: bool = False) -> dict[str, Any]:
    return {"type": "event", "id": f"abc-{number}", "open": open}


class Receiver(HTTPServer):
    """Notes what is posted; answers with `status`."""

    status = 200

    def __init__(self) -> None:
        self.got: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["id"])
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


def test_events_are_posted_until_they_are_accepted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_S", (0.01, 0.02))
    webhook = Webhook(f"http://127.0.0.1:{receiver.server_port}")
    receiver.status = 500
    webhook.write([event(1, open=True), {"type": "prediction"}, event(1), event(2)])
    wait(lambda: len(receiver.got) >= 4)
    assert set(receiver.got) == {"abc-1"}
    receiver.status = 200
    wait(lambda: "abc-2" in receiver.got)
    webhook.write([event(3)])
    webhook.close(PATIENCE_S)
    assert list(dict.fromkeys(receiver.got)) == ["abc-1", "abc-2", "abc-3"]


def test_what_nobody_takes_is_dropped_oldest_first_and_does_not_hold_up_the_end(
        receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WEBHOOK_EVENTS", 2)
    webhook = Webhook(f"http://127.0.0.1:{receiver.server_port}")
    receiver.status = 500
    webhook.write([event(1)])
    wait(lambda: len(receiver.got) >= 1)
    webhook.write([event(2), event(3), event(4)])
    receiver.status = 200
    wait(lambda: len(receiver.got) >= 4)
    assert receiver.got == ["abc-1", "abc-1", "abc-3", "abc-4"]
    receiver.status = 500
    webhook.write([event(5)])
    wait(lambda: len(receiver.got) >= 5)
    began = time.monotonic()
    webhook.close(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
