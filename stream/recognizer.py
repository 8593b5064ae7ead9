"""One camera image in; predictions and events out. The live tick: pick, step, publish.

    image ──clock──► picked? ──prepare──► engine.step ──► window ──► calibrated scores ──► events
                     (pick)               (step)                    (publish)
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engines.errors import FrameError, GatestreamError, UsageError
from engines.model.contract import EventRule
from engines.model.preprocess import prepare
from engines.runtime.engine import Engine, StepResult
from stream.clock import Clock
from stream.events import EventTracker
from stream.frame import Event, Gap, HeadScores, Image, Item, Prediction
from stream.images import as_bgr
from stream.ring import SlotTable
from stream.scoring import Scorer, Scores, ScoringModel, ranked

Watcher = Callable[[str, float, int, Scores], None]


@dataclass(slots=True)
class Counts:
    """Totals of one camera since its stream began. `events`: those that have closed."""

    frames: int = 0
    predictions: int = 0
    events: int = 0
    dropped: int = 0
    held: int = 0


class _Stream:
    """Everything remembered of one camera but the network's state, which sits in the engine's `slot`."""

    def __init__(self, camera: str, slot: int, model: ScoringModel, rule: EventRule | None) -> None:
        contract = model.contract
        self.camera, self.slot = camera, slot
        self.clock = Clock(contract.frame_rate, contract.max_gap_s)
        self.scorer = Scorer(model)
        self.trackers = {head: EventTracker(camera, head, labels, contract.background, rule or contract.events)
                         for head, labels in contract.heads.items()}
        self.counts = Counts()
        self.steps = 0  # since the last reset
        self.previous: Image | None = None  # the prepared image of the last step, and when it was taken
        self.previous_at = 0.0

    def close_events(self) -> list[Event]:
        closed = [event for tracker in self.trackers.values() for event in tracker.flush()]
        self.counts.events += len(closed)
        return closed

    def forget(self) -> None:
        self.steps, self.previous = 0, None
        self.scorer.reset()


Decoder = Callable[[], NDArray[Any]]
Begun = Callable[[], Image | FrameError | None]


@dataclass(frozen=True, slots=True)
class Arrival:
    """The next image of a camera.

    image_bgr: uint8 [H, W, 3] of any size (see `stream.images` for what else is converted), or what decodes it, which
    is called only if the camera's clock wants the image;
    captured_at: seconds, on any clock that runs evenly; index: number of the frame, counted by default;
    lost: frames that nobody looked at since the last one: ticks that they may have been for are skipped, not held, as
    there is no time for them, and recognition suffers less (0.83 instead of 0.78 of the clips right with 40 % lost);
    passed_at: when the last one was taken that was passed over since, by a clock like the camera's own;
    waited_s: how long the image waited before this call.
    """

    image_bgr: NDArray[Any] | Decoder
    captured_at: float
    camera: str = "0"
    index: int | None = None
    lost: int = 0
    waited_s: float = 0.0
    passed_at: float | None = None


@dataclass(slots=True)
class _Turn:
    """A camera's part in one step of the engine."""

    stream: _Stream
    arrival: Arrival
    number: int
    held: int
    image: Image
    latency: dict[str, float]
    items: list[Item]
    events: list[Event] = field(default_factory=list)


class Recognizer:
    """Recognises the actions of up to `engine.slots` cameras.

        with Recognizer.open(model="gesture") as recognizer:
            for item in recognizer.push(image_bgr, captured_at=time.time()):
                print(item)                                # Prediction | Event | Gap

    The same images at the same times give the same items, live or replayed, but for their latencies.
    Not thread-safe: use it from one thread. Leaving the `with` block closes the engine.
    """

    def __init__(self, model: ScoringModel, engine: Engine, timer: Callable[[], float] = time.perf_counter,
                 threads: ThreadPoolExecutor | None = None) -> None:
        """timer: gives seconds, for latencies only; threads: decode and prepare images of several cameras at a time."""
        self.contract, self.engine = model.contract, engine
        self.watcher: Watcher | None = None
        """Called with (camera, time, steps since its last reset, scores) at every tick, held ones too: the full scores,
        of which a Prediction tells the best."""
        self._rules: Mapping[str, EventRule] = {}
        self._model, self._timer = model, timer
        self._threads = threads
        self._begun: Counter[str] = Counter()  # images of each camera that were begun and not pushed
        self._slots = SlotTable(engine.slots)
        self._streams: dict[str, _Stream] = {}

    @classmethod
    def open(cls, model: str | os.PathLike[str] = "gesture", engine: str = "auto", slots: int = 8,
             hop: int | None = None) -> Self:
        """Loads a bundled model by name, or a model file, and builds its engine (or takes it from the cache).

        engine: as `gatestream run --engine`; slots: cameras at a time, at most; hop: of a bidirectional model, the
        frames from one clip's scores to the next, None for the model's own.
        Raises UsageError for unknown names, ModelError for a bad file, EngineError when no engine can be built.
        """
        import engines

        loaded = engines.load(model)
        return cls(loaded, engines.compile(loaded, engine=engine, slots=slots, hop=hop))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the engine. Events still open are lost: `flush` their cameras first."""
        self._streams.clear()
        self.engine.close()

    def push(self, image_bgr: NDArray[Any] | Decoder, captured_at: float, camera: str = "0", index: int | None = None,
             lost: int = 0, waited_s: float = 0.0) -> list[Item]:
        """Takes the next image of a camera; returns what it caused, in order. See `Arrival` for the arguments.

        Most cameras are faster than the model: an image between two ticks of its clock gives []. A camera joins
        with its first image. Raises FrameError for an image that cannot be used: it costs that frame only,
        and is counted as dropped. Raises UsageError when no slot is free, EngineError when the engine fails.
        """
        [outcome] = self.push_many([Arrival(image_bgr, captured_at, camera, index, lost, waited_s)])
        if isinstance(outcome, GatestreamError):
            raise outcome
        return outcome

    def begin(self, arrivals: Sequence[Arrival]) -> list[Begun]:
        """Has the threads prepare images while the engine is busy with others; `push_many` has to be given them next.

        Of a camera that was begun and not pushed it is not known yet which image its clock wants: that one waits."""
        begun: list[Begun] = []
        for arrival in arrivals:
            prepare = partial(self._prepared, arrival)
            known = arrival.camera not in self._begun
            self._begun[arrival.camera] += 1
            begun.append(self._threads.submit(prepare).result if self._threads is not None and known else prepare)
        return begun

    def push_many(self, arrivals: Sequence[Arrival], begun: Sequence[Begun] | None = None) \
            -> list[list[Item] | GatestreamError]:
        """Takes the next image of several cameras, which the engine then advances side by side.

        begun: what `begin` gave for them, if they were begun before. Returns for each what `push` would: what the image
        caused, or the error that it would raise; one camera's error is no other's. Raises UsageError for a camera that
        is there twice, EngineError.
        """
        begun = self.begin(arrivals) if begun is None else begun
        there = Counter(arrival.camera for arrival in arrivals)
        self._begun -= there
        twice = [name for name, count in there.items() if count > 1]
        if twice:
            raise UsageError(f"two images of camera {twice[0]!r} at once", "one of each camera",
                             "push them one after the other")
        began = self._timer()
        outcomes: list[list[Item] | GatestreamError] = []
        turns: list[_Turn] = []
        for arrival, prepared in zip(arrivals, begun, strict=True):
            try:
                items, turn = self._admitted(arrival, prepared())
            except (FrameError, UsageError) as error:
                outcomes.append(error)
                continue
            outcomes.append(items)
            if turn is not None:
                turns.append(turn)
        ready = self._timer()
        for turn in turns:
            turn.latency["preprocess"] = ready - began
        self._hold(turns)
        stepped = self._step([turn.stream for turn in turns], [turn.image for turn in turns],
                             [turn.latency for turn in turns])
        for turn, scores in zip(turns, stepped, strict=True):
            turn.events += self._track(turn.stream, turn.arrival.captured_at, scores)
            turn.latency["total"] = turn.arrival.waited_s + self._timer() - began
            turn.stream.counts.predictions += 1
            turn.items += [self._publish(turn, scores), *turn.events]
        return outcomes

    def flush(self, camera: str = "0") -> list[Event]:
        """Ends a camera's stream: closes its open events, returns them, and frees its slot."""
        stream = self._streams.get(camera)
        closed = stream.close_events() if stream else []
        self.reset(camera)
        return closed

    def cut(self, camera: str = "0") -> list[Event]:
        """Closes a camera's open events and returns them; its stream goes on."""
        stream = self._streams.get(camera)
        return stream.close_events() if stream else []

    def set_rules(self, rules: Mapping[str, EventRule]) -> None:
        """How scores of some cameras become events, from now on; those of all others do as the contract says."""
        self._rules = dict(rules)
        for stream in self._streams.values():
            for tracker in stream.trackers.values():
                tracker.rule = self._rules.get(stream.camera, self.contract.events)

    def reset(self, camera: str = "0") -> None:
        """Forgets a camera, open events included: its next image starts a new stream."""
        stream = self._streams.pop(camera, None)
        if stream is not None:
            self._slots.give_back(stream.slot)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those whose streams have begun and not ended."""
        return tuple(self._streams)

    def counts(self, camera: str = "0") -> Counts:
        """Totals of a camera since its stream began; zeros for one that has not begun."""
        stream = self._streams.get(camera)
        return replace(stream.counts) if stream else Counts()

    def _join(self, camera: str) -> _Stream:
        stream = self._streams[camera] = _Stream(camera, self._slots.take(camera), self._model,
                                                 self._rules.get(camera))
        self.engine.reset([stream.slot])
        return stream

    def _prepared(self, arrival: Arrival) -> Image | FrameError | None:
        """The network's input; None when the camera's clock does not want it. Touches nothing: threads may share it."""
        stream = self._streams.get(arrival.camera)
        try:
            wanted = stream is None or stream.clock.wants(arrival.captured_at, arrival.passed_at)
            image = arrival.image_bgr
            if callable(image):
                if not wanted:
                    return None
                image = image()
            checked = as_bgr(image)
            return prepare(checked, self.contract) if wanted else None
        except FrameError as error:
            return error

    def _admitted(self, arrival: Arrival, prepared: Image | FrameError | None) -> tuple[list[Item], _Turn | None]:
        """Lets an image into its camera's stream: what that alone caused, and the tick it is good for, if any."""
        stream = self._streams.get(arrival.camera) or self._join(arrival.camera)
        counts = stream.counts
        number = counts.frames if arrival.index is None else arrival.index
        counts.frames += 1
        counts.dropped += arrival.lost
        if isinstance(prepared, FrameError):
            counts.dropped += 1
            raise prepared
        if arrival.passed_at is not None:
            stream.clock.pass_over(arrival.passed_at)
        tick = stream.clock.tick(arrival.captured_at)
        items: list[Item] = []
        if tick.action is not None:
            items += stream.close_events()
            items.append(Gap(arrival.camera, arrival.captured_at, tick.gap_s or 0.0, tick.action))
            self.engine.reset([stream.slot])
            stream.forget()
        if prepared is None:
            return items, None
        latency = {"queue": arrival.waited_s, "preprocess": 0.0, "engine": 0.0, "fuse": 0.0}
        held = 0 if arrival.lost else tick.held
        return items, _Turn(stream, arrival, number, held, prepared, latency, items)

    def _hold(self, turns: Sequence[_Turn]) -> None:
        """Fills ticks without an image with the one before; they count for state and events alone."""
        waiting = [(turn, turn.stream.previous, turn.stream.previous_at) for turn in turns]
        for tick in range(1, max((turn.held for turn in turns), default=0) + 1):
            held = [(turn, image, since) for turn, image, since in waiting if image is not None and turn.held >= tick]
            stepped = self._step([turn.stream for turn, _, _ in held], [image for _, image, _ in held],
                                 [turn.latency for turn, _, _ in held])
            for (turn, _, since), scores in zip(held, stepped, strict=True):
                at = since + (turn.arrival.captured_at - since) * tick / (turn.held + 1)
                turn.events += self._track(turn.stream, at, scores)
                turn.stream.counts.held += 1

    def _step(self, streams: Sequence[_Stream], images: Sequence[Image],
              latencies: Sequence[dict[str, float]]) -> list[Scores]:
        """Advances some cameras by one tick. Adds its seconds to their latencies."""
        if not streams:
            return []
        began = self._timer()
        result = self.engine.step(np.stack(images), [stream.slot for stream in streams])
        scored = stepped = self._timer()
        scores = []
        for i, (stream, image, latency) in enumerate(zip(streams, images, latencies, strict=True)):
            scores.append(stream.scorer.score(StepResult(
                result.features[i:i + 1], {head: logits[i:i + 1] for head, logits in result.scores.items()},
                None if result.spans is None else result.spans[i:i + 1])))
            stream.steps += 1
            stream.previous = image
            latency["engine"] += stepped - began
            before, scored = scored, self._timer()
            latency["fuse"] += scored - before
        return scores

    def _track(self, stream: _Stream, at: float, scores: Scores) -> list[Event]:
        stream.previous_at = at
        if self.watcher is not None:
            self.watcher(stream.camera, at, stream.steps, scores)
        if not self._warm(stream):
            return []
        events = [event for head, tracker in stream.trackers.items()
                  for event in tracker.update(at, scores.now[head], scores.window[head])]
        stream.counts.events += sum(not event.open for event in events)
        return events

    def _warm(self, stream: _Stream) -> bool:
        return stream.steps >= self.contract.warmup_frames

    def _publish(self, turn: _Turn, scores: Scores) -> Prediction:
        stream = turn.stream
        heads = {head: HeadScores(ranked(labels, scores.now[head]), ranked(labels, scores.window[head]))
                 for head, labels in self.contract.heads.items()}
        return Prediction(camera=stream.camera, frame=turn.number, captured_at=turn.arrival.captured_at,
                          warm=self._warm(stream), heads=heads, clips=scores.gates,
                          latency_ms={part: 1000 * value for part, value in turn.latency.items()},
                          dropped=stream.counts.dropped, held=stream.counts.held)
