"""Opens the event log and the sinks of a configuration."""

from collections.abc import Sequence
from contextlib import ExitStack

import zmq

from stream.service.config import Config
from stream.service.egress.mqtt import MqttSink
from stream.service.egress.outbox import JsonLinesFile, Outbox, Publisher, ResultSink, Webhook
from stream.sinks.log import EventLog


def open_sinks(config: Config, model: str, context: zmq.Context[zmq.Socket[bytes]], stack: ExitStack,
               others: Sequence[ResultSink] = ()) -> Outbox:
    """The outbox, not yet started, which `stack` closes. others: sinks before its own. Raises UsageError, SinkError."""
    results, sinks = config.results, [*others]
    event_log = stack.enter_context(EventLog(results.log, model, "service")) if results.log is not None else None
    if results.publish:
        sinks.append(Publisher(context.socket(zmq.PUB), results.publish))
    if results.mqtt is not None:
        sinks.append(MqttSink(results.mqtt))
    if results.jsonl is not None:
        sinks.append(JsonLinesFile(results.jsonl))
    if results.webhook is not None:
        sinks.append(Webhook(results.webhook))
    outbox = Outbox(event_log, sinks, names_clips=config.clips is not None)
    stack.callback(outbox.close)
    return outbox
