"""Opens the event log and the sinks of a configuration."""

from collections.abc import Sequence
from contextlib import ExitStack

import zmq

from stream.service.config import ResultsConfig
from stream.service.egress.clips import ClipRecorder
from stream.service.egress.mqtt import MqttSink
from stream.service.egress.outbox import JsonLinesFile, Outbox, Publisher, ResultSink, Webhook
from stream.sinks.log import EventLog


def open_sinks(results: ResultsConfig, model: str, context: zmq.Context[zmq.Socket[bytes]], stack: ExitStack,
               recorder: ClipRecorder | None = None, others: Sequence[ResultSink] = ()) -> Outbox:
    """The outbox, not yet started, which `stack` closes; recorder: names and makes videos of events.

    Raises UsageError, SinkError.
    """
    event_log = stack.enter_context(EventLog(results.log, model, "service")) if results.log is not None else None
    sinks = [*others, *([] if recorder is None else [recorder])]
    if results.publish:
        sinks.append(Publisher(context.socket(zmq.PUB), results.publish))
    if results.mqtt is not None:
        sinks.append(MqttSink(results.mqtt))
    if results.jsonl is not None:
        sinks.append(JsonLinesFile(results.jsonl))
    if results.webhook is not None:
        sinks.append(Webhook(results.webhook))
    outbox = Outbox(event_log, sinks, None if recorder is None else recorder.name_of)
    stack.callback(outbox.close)
    return outbox
