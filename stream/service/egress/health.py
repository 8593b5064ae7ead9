"""The service's state: what /health shows, and the same as Prometheus metrics."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from stream.frame import Frame, Prediction, Record
from stream.sinks.base import Sink

LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

COUNTERS = {"received": "Messages received", "taken": "Messages that the engine took",
            "passed": "Messages between two ticks of the model's clock", "bytes": "Bytes of payload",
            "predictions": "Predictions made", "reconnects": "Times the camera came back",
            "restarts": "Times its process, where it has one, was started again"}
GAUGES = {"present": "Whether the camera sends", "staleness_seconds": "Seconds since its last message",
          "left_at": "Unix time of its last message, if it has left",
          "latency_seconds": "From arrival to prediction, of its latest prediction",
          "clock_skew_seconds": "Its clock against the service's, at its latest message",
          "frozen": "Whether it sends the same picture again and again"}
BY_CAUSE = (("dropped", "cause", "Messages dropped here, by cause"),
            ("gaps", "action", "Gaps in the camera's stream, by what was done about them"))
TOTALS = (("refused", "cause", "Messages refused, by cause"), ("results", "type", "Results delivered"),
          ("clips", "outcome", "Videos of events"), ("api", "outcome", "Requests to the API, and what was lost there"))
SINKS = (("fault", GaugeMetricFamily, "Whether nothing gets through to it now"),
         ("waiting", GaugeMetricFamily, "Records that wait for it"),
         ("delivered", CounterMetricFamily, "Closed events and gaps delivered"),
         ("refused", CounterMetricFamily, "Events that it will not take"),
         ("failures", CounterMetricFamily, "Times it failed"),
         ("dropped", CounterMetricFamily, "Records that were too many for it"))
SERVICE = (("healthy", GaugeMetricFamily, "Whether the engine serves and results get on"),
           ("waiting", GaugeMetricFamily, "Messages that wait for the engine"),
           ("engine_restarts", CounterMetricFamily, "Engine processes lost"),
           ("memory_bytes", GaugeMetricFamily, "Resident memory of the service and its engine's process"))


class ServiceState(TypedDict):
    """The object that /health shows, of a service and of a cluster alike."""

    healthy: bool
    faults: dict[str, str]  # what is wrong, by part; some of it leaves a service healthy
    sinks: dict[str, Any]
    model: str
    background: str | None
    engine: str
    log: str | None  # path of the event log
    clips_folder: str | None
    cameras: dict[str, dict[str, Any]]
    refused: dict[str, int]
    results: dict[str, int]
    clips: dict[str, int]
    waiting: int
    engine_restarts: int
    memory_bytes: int
    workers: NotRequired[dict[str, list[str]]]  # of a cluster: the cameras of each


class Metrics(Collector, Sink):
    """The service's state as Prometheus metrics, read when asked, and histograms of the latency of results.
    api: counts of what asks for them."""

    def __init__(self, state: Callable[[], Mapping[str, Any]]) -> None:
        self._state, self.registry = state, CollectorRegistry()
        self.api: Counter[str] = Counter()
        self._latency = Histogram("gatestream_latency_seconds", "From a message's arrival to its prediction, by part",
                                  ["part"], buckets=LATENCY_S, registry=self.registry)
        self.registry.register(self)

    def state(self) -> dict[str, Any]:
        """What /health shows."""
        return {**self._state(), "api": dict(self.api)}

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, Prediction):
                for part, ms in record.latency_ms.items():
                    self._latency.labels(part).observe(ms / 1000)

    def close(self) -> None:
        """Nothing to finish."""

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        state = self.state()
        cameras, sinks = state["cameras"].items(), state["sinks"].items()
        for kind, table in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for key, text in table.items():
                yield _labelled(kind, f"camera_{key}", text, ["camera"], {
                    (camera,): counts[key] for camera, counts in cameras if counts[key] is not None})
        for key, label, text in BY_CAUSE:
            yield _labelled(CounterMetricFamily, f"camera_{key}", text, ["camera", label], {
                (camera, cause): count for camera, counts in cameras for cause, count in counts[key].items()})
        for key, label, text in TOTALS:
            yield _labelled(CounterMetricFamily, key, text, [label], {(cause,): n for cause, n in state[key].items()})
        yield InfoMetricFamily("gatestream_engine", "What runs", {"model": state["model"], "engine": state["engine"]})
        for key, kind, text in SINKS:
            yield _labelled(kind, f"sink_{key}", text, ["sink"], {
                (sink,): bool(counts[key]) if key == "fault" else counts[key] for sink, counts in sinks})
        yield _labelled(GaugeMetricFamily, "fault", "What is wrong: 1 while it is", ["part"],
                        {(part,): 1 for part in state["faults"]})
        for key, kind, text in SERVICE:
            yield kind(f"gatestream_{key}", text, state[key])


def _labelled(kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, text: str, labels: Sequence[str],
              samples: Mapping[tuple[str, ...], float]) -> Metric:
    metric = kind(f"gatestream_{name}", text, labels=labels)
    for values, count in samples.items():
        metric.add_metric(values, float(count))
    return metric
