"""The service's state over HTTP, on the loopback address by default.

    /metrics              for Prometheus
    /health               a JSON object; status 503 while the service is not healthy
    /cameras/NAME.jpg     a camera's newest picture
    /cameras/NAME/live    its records as they come, an array of them a line"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from engines.errors import SourceError
from stream.service.config import LOOPBACK
from stream.service.egress.live_feed import LiveFeed
from stream.service.egress.outbox import JsonRecord, ResultSink

STOPS_WITHIN_S = 0.1
LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CAMERA = re.compile(r"/cameras/([^/]+?)(\.jpg|/live)")

COUNTERS = {"received": "Messages received", "taken": "Messages that the engine took",
            "passed": "Messages between two ticks of the model's clock", "bytes": "Bytes of payload",
            "predictions": "Predictions made", "reconnects": "Times the camera came back"}
GAUGES = {"present": "Whether the camera sends", "staleness_seconds": "Seconds since its last message",
          "frozen": "Whether it sends the same picture again and again"}
BY_CAUSE = (("dropped", "cause", "Messages dropped here, by cause"),
            ("gaps", "action", "Gaps in the camera's stream, by what was done about them"))
TOTALS = (("refused", "cause", "Messages refused, by cause"), ("results", "type", "Results delivered"),
          ("clips", "outcome", "Videos of events"))
SERVICE = {"waiting": "Messages that wait for the engine", "engine_restarts": "Engine processes lost",
           "memory_bytes": "Resident memory of the service and its engine's process"}


class Metrics(Collector, ResultSink):
    """The service's state as Prometheus metrics, read when asked, and histograms of the latency of results."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self.state, self.registry = state, CollectorRegistry()
        self._latency = Histogram("gatestream_latency_seconds", "From a message's arrival to its prediction, by part",
                                  ["part"], buckets=LATENCY_S, registry=self.registry)
        self.registry.register(self)

    def write(self, records: Sequence[JsonRecord]) -> None:
        for record in records:
            if record["type"] == "prediction":
                for part, ms in record["latency_ms"].items():
                    self._latency.labels(part).observe(ms / 1000)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        state = self.state()
        for kind, table in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for key, text in table.items():
                metric = kind(f"gatestream_camera_{key}", text, labels=["camera"])
                for camera, counts in state["cameras"].items():
                    metric.add_metric([camera], float(counts[key]))
                yield metric
        for key, label, text in BY_CAUSE:
            metric = CounterMetricFamily(f"gatestream_camera_{key}", text, labels=["camera", label])
            for camera, counts in state["cameras"].items():
                for cause, count in counts[key].items():
                    metric.add_metric([camera, cause], count)
            yield metric
        for key, label, text in TOTALS:
            metric = CounterMetricFamily(f"gatestream_{key}", text, labels=[label])
            for cause, count in state[key].items():
                metric.add_metric([cause], count)
            yield metric
        yield InfoMetricFamily("gatestream_engine", "What runs", {"model": state["model"], "engine": state["engine"]})
        for key, text in SERVICE.items():
            yield GaugeMetricFamily(f"gatestream_{key}", text, state[key])


@contextmanager
def serve_health(bind: str | None, metrics: Metrics, live_feed: LiveFeed | None = None) -> Iterator[str | None]:
    """Serves the pages at an address, if there is one, in threads of its own; gives the address with its port.
    live_feed: of cameras, where they may be looked at. Raises SourceError for an address that is taken."""
    if bind is None:
        yield None
        return
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    handler = type("Handler", (_Handler,), {"registry": metrics.registry, "metrics": metrics, "live_feed": live_feed,
                                            "loopback": host in LOOPBACK})
    try:
        server = ThreadingHTTPServer((host, int(port)), handler)
    except (OSError, OverflowError) as error:
        raise SourceError(f"health at {bind} ({error})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(STOPS_WITHIN_S,), name="health", daemon=True).start()
    try:
        yield "{}:{}".format(*server.server_address[:2])
    finally:
        server.shutdown()
        server.server_close()


class _Handler(MetricsHandler):
    metrics: Metrics
    live_feed: LiveFeed | None
    loopback: bool  # only this machine can ask

    def do_GET(self) -> None:
        if self.path == "/metrics":
            super().do_GET()
        elif self.path == "/health":
            state = self.metrics.state()
            self._send(200 if state["healthy"] else 503, "application/json", json.dumps(state).encode())
        else:
            self._send_camera()

    def _send_camera(self) -> None:
        found = CAMERA.fullmatch(self.path)
        name = (urlsplit(f"//{self.headers.get('Host', '')}").hostname or "").lower()
        if found is None:
            self._send(404, "text/plain", b"/health, /metrics, /cameras/NAME.jpg or /cameras/NAME/live\n")
        elif self.live_feed is None or (self.loopback and name not in LOOPBACK):  # a page that has a name resolve to us
            self._send(403, "text/plain", b"cameras are not shown here: see health.pictures of the configuration\n")
        elif found[2] == "/live":
            self.send_response(200)
            self.send_header("Content-Type", "application/jsonl")
            self.end_headers()
            with suppress(OSError):  # the client has gone
                for records in self.live_feed.follow(unquote(found[1])):
                    self.wfile.write(json.dumps(records).encode() + b"\n")
        elif (picture := self.live_feed.picture(unquote(found[1]))) is not None:
            self._send(200, "image/jpeg", picture)
        else:
            self._send(404, "text/plain", b"no picture of this camera\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")  # a picture is what some sender says is one
        self.end_headers()
        self.wfile.write(body)
