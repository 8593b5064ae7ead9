"""One camera image in; predictions and events out. The live tick: pick, step, publish.

    image ──clock──► picked? ──prepare──► engine.step ──► window ──► calibrated scores ──► events
                     (pick)               (step)                    (publish)
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Self, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from engines.decoding.images import as_bgr
from engines.errors import FrameError, GatestreamError, UsageError
from engines.model.contract import EventRule
from engines.model.file import Model
from engines.model.preprocess import prepare
from engines.runtime.engine import Engine, StepResult
from stream.clock import Clock, Tick, TimeMonitor, as_seconds
from stream.frame import Counts, Event, Gap, HeadScores, Image, Item, Prediction
from stream.scoring import Scorer, Scores, open_hand_models, parts_of, result_heads, top_labels
from stream.trackers import event_trackers

Decoder = Callable[[], NDArray[Any]]


class Input(NamedTuple):
    """What one step of a camera needs of an image."""

    image: Image  # for the network
    picture: Image | None  # as it came, of a model that looks for hands


Prepared = Callable[[], Input | FrameError | None]  # waits for it; None where it is not needed
ScoreListener = Callable[[float, int, Scores], None]  # time, steps since the camera's last reset, scores


class _CameraState:
    """Everything remembered of one camera but the network's state, which sits in the engine's `slot`."""

    def __init__(self, camera: str, slot: int, model: Model, rule: EventRule | None) -> None:
        contract = model.contract
        self.camera, self.slot = camera, slot
        self.clock = Clock(contract.frame_rate, contract.max_gap_s)
        self.times = TimeMonitor(camera, contract.frame_rate, contract.max_gap_s)
        self.scorer = Scorer(model)
        self.trackers = event_trackers(contract, camera, rule)
        self.counts = Counts()
        self.owed: Tick | None = None  # of images that could not be decoded, which the next one makes up for
        self.steps = 0  # since the last reset
        self.previous: Image | None = None  # the prepared image of the last step, and when it was taken
        self.previous_at = 0.0

    def close_events(self) -> list[Event]:
        closed = [event for tracker in self.trackers.values() for event in tracker.flush()]
        self.counts.events += len(closed)
        return closed


@dataclass(frozen=True, slots=True)
class Arrival:
    """The next image of a camera, for `Recognizer.push_many`."""

    image_bgr: NDArray[Any] | Decoder  # as for `Recognizer.push`
    captured_at: float  # seconds, on any clock that runs evenly
    camera: str = "0"
    index: int | None = None  # number of the frame; counted by default
    lost: int = 0  # frames dropped since the last one: the ticks they were for are skipped, not held
    waited_s: float = 0.0  # how long the image waited before this call
    tick: Tick | None = None  # of a clock that somebody else keeps for this camera; by default the recogniser's own


@dataclass(slots=True)
class _BatchItem:
    """One camera's part in one step of the engine."""

    stream: _CameraState
    arrival: Arrival
    number: int
    held: int
    input: Input
    latency: dict[str, float]  # seconds of each part
    items: list[Item]
    events: list[Event] = field(default_factory=list)


class Recognizer:
    """Recognises the actions of up to `engine.slots` cameras.

        with (Recognizer.open(model="gesture") as recognizer,
              open_source("sim://gestures?seconds=20&realtime=0") as source):
            for frame in source.frames():
                if isinstance(frame, Frame):
                    for item in recognizer.push(frame.image_bgr, frame.captured_at):
                        print(item)                                  # Prediction | Event | Gap
            for event in recognizer.flush():                         # what was still open at the end
                print(event)

    The same images at the same times give the same items, live or replayed, but for their latencies.
    Not thread-safe: use it from one thread. Leaving the `with` block closes the engine."""

    def __init__(self, model: Model, engine: Engine, timer: Callable[[], float] = time.perf_counter,
                 threads: ThreadPoolExecutor | None = None) -> None:
        """timer: gives seconds, for latencies only; threads: decode and prepare images of several cameras at a time."""
        self.contract, self.engine = model.contract, engine
        self.score_listeners: dict[str, ScoreListener] = {}
        """By camera: called at every tick, held ones too, with the full scores, of which a Prediction has the best."""
        self._rules: Mapping[str, EventRule] = {}
        self._model, self._timer, self._threads = model, timer, threads
        self._in_preparation: Counter[str] = Counter()  # images of each camera given to `prepare_async`, not yet pushed
        self._free_slots = list(range(engine.slots))[::-1]
        self._streams: dict[str, _CameraState] = {}
        open_hand_models(model.contract)

    @classmethod
    def open(cls, model: str | os.PathLike[str] = "gesture", engine: str = "auto", slots: int = 8,
             hop: int | None = None) -> Self:
        """Loads a bundled model by name, or a model file, and builds its engine (or takes it from the cache).
        engine: as `gatestream run --engine`; slots: cameras at a time, at most; hop: of a bidirectional model, the
        frames from one clip's scores to the next, None for the model's own.
        Raises UsageError for unknown names, ModelError for a bad file, EngineError when no engine can be built."""
        import engines

        loaded = engines.load(model)
        return cls(loaded, engines.compile(loaded, engine=engine, slots=slots, hop=hop))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the engine. Events still open are lost: `flush` their cameras first."""
        self._streams.clear()
        self.engine.close()

    def push(self, image_bgr: NDArray[Any] | Decoder, captured_at: SupportsFloat | datetime, camera: str = "0",
             index: int | None = None, lost: int = 0, waited_s: float = 0.0) -> list[Item]:
        """Takes the next image of a camera; returns what it caused, in order.
        image_bgr: uint8 [H, W, 3] of any size (`stream.images`: what else is converted), or a function that decodes
        it, called only if the camera's clock wants the image; captured_at: seconds on any clock that runs evenly, or a
        datetime; the other arguments are those of `Arrival`.
        Most cameras are faster than the model: an image between two ticks of its clock gives []. A camera joins
        with its first image. Raises FrameError for an image that cannot be used: it costs that frame only,
        and is counted as dropped. Raises UsageError when no slot is free or `captured_at` is no time, EngineError when
        the engine fails."""
        [outcome] = self.push_many([Arrival(image_bgr, as_seconds(captured_at), camera, index, lost, waited_s)])
        if isinstance(outcome, GatestreamError):
            raise outcome
        return outcome

    def prepare_async(self, arrivals: Sequence[Arrival]) -> list[Prepared]:
        """Starts to decode and resize images on the threads while the engine is busy; `push_many` takes them next.
        A camera's second image waits for the first to be pushed: only then is it known whether its clock wants it."""
        prepared: list[Prepared] = []
        for arrival in arrivals:
            job = partial(self._prepare, arrival)
            waits = arrival.camera in self._in_preparation
            prepared.append(self._threads.submit(job).result if self._threads and not waits else job)
            self._in_preparation[arrival.camera] += 1
        return prepared

    def push_many(self, arrivals: Sequence[Arrival], prepared: Sequence[Prepared] | None = None) \
            -> list[list[Item] | GatestreamError]:
        """Takes the next image of several cameras, which the engine then advances side by side.
        prepared: what `prepare_async` returned for them, if it was called. Returns for each what `push` would return or
        raise: an error of one does not touch the others. Raises UsageError for two images of a camera, EngineError."""
        self.engine.check_process()  # before images are decoded and resized, which have threads, too
        prepared = self.prepare_async(arrivals) if prepared is None else prepared
        images_of = Counter(arrival.camera for arrival in arrivals)
        self._in_preparation -= images_of
        for name, count in images_of.items():
            if count > 1:
                raise UsageError(f"two images of camera {name!r} at once", "one of each camera",
                                 "push them one after the other")
        began = self._timer()
        outcomes: list[list[Item] | GatestreamError] = []
        batch: list[_BatchItem] = []
        for arrival, image in zip(arrivals, prepared, strict=True):
            try:
                outcomes.append(self._admit(arrival, image(), batch))
            except (FrameError, UsageError) as error:
                outcomes.append(error)
        ready = self._timer()
        for one in batch:
            one.latency["preprocess"] = ready - began
        self._hold(batch)
        for one in batch:
            if one.input.picture is not None:
                looked = self._timer()
                one.stream.scorer.find_hands(one.input.picture)
                one.latency["hands"] = self._timer() - looked
        for one, scores in zip(batch, self._step(batch, [one.input.image for one in batch]), strict=True):
            one.events += self._track(one.stream, one.arrival.captured_at, scores)
            one.latency["total"] = one.arrival.waited_s + self._timer() - began
            one.stream.counts.predictions += 1
            one.items += [self._publish(one, scores), *one.events]
        return outcomes

    def flush(self, camera: str = "0") -> list[Event]:
        """Ends a camera's stream: closes its open events, returns them, and frees its slot."""
        closed = self.close_events(camera)
        self.reset(camera)
        return closed

    def close_events(self, camera: str = "0") -> list[Event]:
        """Closes a camera's open events and returns them; its stream goes on."""
        stream = self._streams.get(camera)
        return stream.close_events() if stream else []

    def set_rules(self, rules: Mapping[str, EventRule]) -> None:
        """Sets the event rules of some cameras from now on; all others follow the contract's."""
        self._rules = dict(rules)
        for stream in self._streams.values():
            for tracker in stream.trackers.values():
                tracker.rule = self._rules.get(stream.camera, self.contract.events)

    def reset(self, camera: str = "0") -> None:
        """Forgets a camera, open events included: its next image starts a new stream."""
        stream = self._streams.pop(camera, None)
        if stream is not None:
            self._free_slots.append(stream.slot)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those whose streams have begun and not ended."""
        return tuple(self._streams)

    def counts(self, camera: str = "0") -> Counts:
        """Totals of a camera since its stream began; zeros for one that has not begun."""
        stream = self._streams.get(camera)
        return replace(stream.counts) if stream else Counts()

    def _join(self, camera: str) -> _CameraState:
        if not self._free_slots:
            raise UsageError(f"camera {camera!r} as one more than {self.engine.slots}",
                             f"at most {self.engine.slots} cameras at a time (slots)",
                             "flush cameras that have ended, or open the recognizer with more slots")
        stream = self._streams[camera] = _CameraState(camera, self._free_slots.pop(), self._model,
                                                      self._rules.get(camera))
        self.engine.reset([stream.slot])
        return stream

    def _prepare(self, arrival: Arrival) -> Input | FrameError | None:
        """The network's input; None when the camera's clock does not want it. Touches nothing: threads may share it."""
        stream = self._streams.get(arrival.camera)
        try:
            wanted = stream is None or arrival.tick is not None or stream.clock.wants(arrival.captured_at)
            image = arrival.image_bgr
            if callable(image) and not wanted:
                return None
            checked = as_bgr(image() if callable(image) else image)
            return Input(prepare(checked, self.contract), checked if self.contract.looks_for_hands else None) \
                if wanted else None
        except FrameError as error:
            return error

    def _admit(self, arrival: Arrival, prepared: Input | FrameError | None, batch: list[_BatchItem]) -> list[Item]:
        """Lets an image into its camera's stream, and into the batch if a tick is due; the list its items go to."""
        stream = self._streams.get(arrival.camera) or self._join(arrival.camera)
        counts = stream.counts
        number = counts.frames if arrival.index is None else arrival.index
        counts.frames += 1
        counts.dropped += arrival.lost
        if isinstance(prepared, FrameError):
            counts.dropped += 1
            if arrival.tick is not None:
                stream.owed = arrival.tick._replace(held=arrival.tick.held + 1).after(stream.owed)
            raise prepared
        stream.times.add(arrival.captured_at)
        tick = (arrival.tick or stream.clock.tick(arrival.captured_at)).after(stream.owed)
        stream.owed = None
        items: list[Item] = []
        if tick.action is not None:
            items += stream.close_events()
            items.append(Gap(arrival.camera, arrival.captured_at, tick.gap_s or 0.0, tick.action))
            self.engine.reset([stream.slot])
            stream.scorer.reset()
            stream.steps, stream.previous = 0, None
        if prepared is not None:
            latency = {"queue": arrival.waited_s, "preprocess": 0.0, "engine": 0.0, "fuse": 0.0}
            held = 0 if arrival.lost else tick.held
            batch.append(_BatchItem(stream, arrival, number, held, prepared, latency, items))
        return items

    def _hold(self, batch: Sequence[_BatchItem]) -> None:
        """Fills ticks without an image with the one before; they count for state and events alone."""
        waiting = [(one, one.stream.previous, one.stream.previous_at) for one in batch]
        for tick in range(1, max((one.held for one in batch), default=0) + 1):
            held = [(one, image, since) for one, image, since in waiting if image is not None and one.held >= tick]
            stepped = self._step([one for one, _, _ in held], [image for _, image, _ in held])
            for (one, _, since), scores in zip(held, stepped, strict=True):
                at = since + (one.arrival.captured_at - since) * tick / (one.held + 1)
                one.events += self._track(one.stream, at, scores)
                one.stream.counts.held += 1

    def _step(self, batch: Sequence[_BatchItem], images: Sequence[Image]) -> list[Scores]:
        """Advances some cameras by one tick. Adds its seconds to their latencies."""
        if not batch:
            return []
        began = self._timer()
        result = self.engine.step(np.stack(images), [one.stream.slot for one in batch])
        scored = stepped = self._timer()
        scores = []
        for i, (one, image) in enumerate(zip(batch, images, strict=True)):
            scores.append(one.stream.scorer.score(StepResult(
                result.features[i:i + 1], {head: logits[i:i + 1] for head, logits in result.scores.items()},
                None if result.spans is None else result.spans[i:i + 1])))
            one.stream.steps += 1
            one.stream.previous = image
            one.latency["engine"] += stepped - began
            before, scored = scored, self._timer()
            one.latency["fuse"] += scored - before
        return scores

    def _track(self, stream: _CameraState, at: float, scores: Scores) -> list[Event]:
        stream.previous_at = at
        if stream.camera in self.score_listeners:
            self.score_listeners[stream.camera](at, stream.steps, scores)
        if stream.steps < self.contract.warmup_frames:
            return []
        events = [event for head, tracker in stream.trackers.items()
                  for event in tracker.update(at, *(np.concatenate([probs[part] for part in
                                                                    parts_of(self.contract, head)])
                                                    for probs in (scores.now, scores.window)))]
        stream.counts.events += sum(not event.open for event in events)
        return events

    def _publish(self, item: _BatchItem, scores: Scores) -> Prediction:
        stream = item.stream
        heads = {head: HeadScores(*(top_labels(self.contract, head, probs) for probs in (scores.now, scores.window)))
                 for head in result_heads(self.contract)}
        return Prediction(camera=stream.camera, frame=item.number, captured_at=item.arrival.captured_at,
                          warm=stream.steps >= self.contract.warmup_frames, heads=heads, clips=scores.gates,
                          latency_ms={part: 1000 * value for part, value in item.latency.items()},
                          dropped=stream.counts.dropped, held=stream.counts.held, hands=stream.scorer.hands)
