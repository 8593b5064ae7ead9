"""How well results are delivered when everything fails: a webhook and an MQTT broker that come and go at random, and a
service's results path that is killed (SIGKILL) again and again. Needs mosquitto; run by hand.

    python tests/delivery_soak.py [EVENTS [KILLS]]"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from stream.sinks.log import read_events

ROOT = Path(__file__).resolve().parents[1]
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
PERIOD_S = 0.004  # from one event to the next
PROGRAM = f"""
import sys, time
from stream.frame import Event
from stream.sinks.outbox import Outbox
from stream.sinks import sink_thread
from stream.sinks.log import EventLog
from stream.sinks.mqtt import MqttSink
from stream.sinks.webhook import Webhook

path, port, broker, first, end = sys.argv[1], *map(int, sys.argv[2:])
sink_thread.BACK_OFF_S = (0.05, 0.1, 0.2)
outbox = Outbox(EventLog(path, "lamps", "service"), {{
    "webhook": Webhook(f"http://127.0.0.1:{{port}}"), "mqtt": MqttSink("127.0.0.1", broker)}})
outbox.start()
for number in range(first, end):
    outbox.put([Event("a", "gesture", str(number), 1.0, 2.0, 0.9, False)])
    time.sleep({PERIOD_S})
    print(number, flush=True)
while any(sink["waiting"] or sink["fault"] for sink in outbox.state().values()):
    time.sleep(0.05)
outbox.close(30.0)
"""


class Hook(HTTPServer):
    """Takes what is posted while `up`, else answers 503."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.up = True
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body, up = self.rfile.read(int(self.headers["Content-Length"])), hook.up
                hook.got += [json.loads(body)["id"]] if up else []
                self.send_response(200 if up else 503)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Broker:
    """A broker that keeps what it has confirmed, and a subscriber to it that misses nothing."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self._config = port, folder / "mosquitto.conf"
        self._config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
                                f"persistence_location {folder}/\nmax_queued_messages 0\n")
        self.got: list[str] = []
        self.start()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="judge", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("gatestream/+/event", qos=1)
        self._client.on_message = lambda _, __, message: self._keep(json.loads(message.payload))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        time.sleep(1.0)

    def _keep(self, event: dict[str, Any]) -> None:
        if not event["open"]:
            self.got.append(event["id"])

    def start(self) -> None:
        assert MOSQUITTO is not None, "mosquitto is not installed"
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def trouble(hook: Hook, broker: Broker, rng: random.Random) -> Iterator[None]:
    """Both come and go; in the end they are there."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(rng.uniform(0.3, 2.0)):
            if rng.random() < 0.5:
                hook.up = not hook.up
            else:
                broker.stop()
                time.sleep(rng.uniform(0.2, 1.5))
                broker.start()
        hook.up = True

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def process(path: Path, hook: Hook, broker: Broker, first: int, end: int) -> subprocess.Popen[str]:
    arguments = [path, hook.server_port, broker.port, first, end]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def main(events: int = 5000, kills: int = 20) -> None:
    rng = random.Random(5)
    with tempfile.TemporaryDirectory() as folder:
        path, hook, broker, done = Path(folder) / "log.db", Hook(), Broker(18_883, Path(folder)), 0
        with trouble(hook, broker, rng):
            for kill in range(kills):
                until = done + (events - done) // (kills - kill + 1) + rng.randrange(-40, 40)
                running = process(path, hook, broker, done, events)
                assert running.stdout is not None
                next((line for line in running.stdout if int(line) >= until), None)
                running.kill()
                running.wait()
                with closing(sqlite3.connect(path)) as db:
                    done = 1 + db.execute("SELECT max(CAST(label AS INTEGER)) FROM events").fetchone()[0]
        process(path, hook, broker, done, events).communicate()
        time.sleep(3.0)
        wanted = [each.id for each in read_events(path)]
        for name, got in (("webhook", hook.got), ("mqtt", broker.got)):
            first_times = list(dict.fromkeys(got))
            twice = len(got) - len(first_times)
            print(f"{name}: {len(wanted)} logged, {len(set(wanted) - set(got))} lost, {twice} twice "
                  f"({100 * twice / len(wanted):.2f} %), {'in' if first_times == wanted else 'NOT IN'} order")
        broker.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
