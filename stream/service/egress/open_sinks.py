"""Opens the event log and the sinks of a configuration."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from engines.model.file import Model
from stream.service.config import Config
from stream.sinks.base import Sink
from stream.sinks.jsonl import JsonLines
from stream.sinks.log import EventLog
from stream.sinks.mqtt import MqttSink
from stream.sinks.outbox import Outbox
from stream.sinks.publisher import ConfirmedQueue, Publisher
from stream.sinks.webhook import Webhook
from stream.stage import Stage


def open_sinks(config: Config, model: Model, folder: Path, stack: ExitStack,
               memory_sinks: Sequence[Sink] = (), others: Sequence[Sink] = (), stages: Sequence[Stage] = (),
               picture: Callable[[str], bytes | None] | None = None) -> Outbox:
    """The outbox, not yet started, which `stack` closes. folder: temporary, for the log if the configuration has none;
    memory_sinks: as the outbox has them; others: sinks beside the configuration's; picture: a camera's newest one, as a
    JPEG. Raises UsageError, SinkError."""
    results, sinks = config.results, {f"sink {number}": sink for number, sink in enumerate(others, 1)}
    try:
        if results.publish:
            sinks["publish"] = Publisher(results.publish)
        if results.confirmed:
            sinks["confirmed"] = ConfirmedQueue(results.confirmed)
        if results.mqtt is not None:
            sinks["mqtt"] = MqttSink(**{**dict(results.mqtt), "pictures": picture if results.mqtt.pictures else None})
        if results.jsonl is not None:
            sinks["jsonl"] = JsonLines(results.jsonl, append=True)
        if results.webhook is not None:
            sinks["webhook"] = Webhook(**dict(results.webhook))
        event_log = stack.enter_context(EventLog(results.log or folder / "events.db", model.contract.name, "service",
                                                 model.digest))
        outbox = Outbox(event_log, sinks, memory_sinks, stages, names_clips=config.clips is not None,
                        keep=(results.keep_days, results.keep_mb))
    except BaseException:
        for sink in sinks.values():
            sink.close()
        raise
    stack.callback(outbox.close)
    return outbox
