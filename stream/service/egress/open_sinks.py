"""Opens what a configuration says of results: the event log, and everyone who is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import zmq

from stream.service.config import Results
from stream.service.egress.clips import Recorder
from stream.service.egress.mqtt import Broker
from stream.service.egress.outbox import Announcer, Lines, Publisher, Teller, Webhook
from stream.sinks.log import EventLog


def opened(results: Results, model: str, context: zmq.Context[zmq.Socket[bytes]], stack: ExitStack,
           recorder: Recorder | None = None, others: Sequence[Teller] = ()) -> Announcer:
    """The announcer, not yet started; `stack` ends it. recorder: names and makes videos of events.

    Raises UsageError, SinkError.
    """
    event_log = None
    if results.log is not None:
        event_log = stack.enter_context(EventLog(results.log, model, "service"))
    tellers = [*others, *([] if recorder is None else [recorder])]
    if results.publish:
        tellers.append(Publisher(context.socket(zmq.PUB), results.publish))
    if results.mqtt is not None:
        tellers.append(Broker(results.mqtt))
    if results.jsonl is not None:
        tellers.append(Lines(results.jsonl))
    if results.webhook is not None:
        tellers.append(Webhook(results.webhook))
    announcer = Announcer(event_log, tellers, None if recorder is None else recorder.name_of)
    stack.callback(announcer.close)
    return announcer
