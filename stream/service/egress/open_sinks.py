"""Opens what a configuration says of results: the event log, and everyone who is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import zmq

from stream.service.config import Results
from stream.service.egress.clips import ClipRecorder
from stream.service.egress.mqtt import MqttSink
from stream.service.egress.outbox import Lines, Outbox, Publisher, ResultSink, Webhook
from stream.sinks.log import EventLog


def open_sinks(results: Results, model: str, context: zmq.Context[zmq.Socket[bytes]], stack: ExitStack,
           recorder: ClipRecorder | None = None, others: Sequence[ResultSink] = ()) -> Outbox:
    """The outbox, not yet started; `stack` ends it. recorder: names and makes videos of events.

    Raises UsageError, SinkError.
    """
    event_log = None
    if results.log is not None:
        event_log = stack.enter_context(EventLog(results.log, model, "service"))
    sinks = [*others, *([] if recorder is None else [recorder])]
    if results.publish:
        sinks.append(Publisher(context.socket(zmq.PUB), results.publish))
    if results.mqtt is not None:
        sinks.append(MqttSink(results.mqtt))
    if results.jsonl is not None:
        sinks.append(Lines(results.jsonl))
    if results.webhook is not None:
        sinks.append(Webhook(results.webhook))
    outbox = Outbox(event_log, sinks, None if recorder is None else recorder.name_of)
    stack.callback(outbox.close)
    return outbox
