"""One camera image in; predictions and events out. The live tick: pick, step, publish.

    image ──clock──► picked? ──prepare──► engine.step ──► window ──► calibrated scores ──► events
                     (pick)               (step)                    (publish)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from engines.engine import Engine
from engines.errors import FrameError
from engines.preprocess import prepare
from stream.clock import Clock
from stream.events import EventTracker
from stream.frame import Event, Gap, HeadScores, Image, Item, Prediction
from stream.images import as_bgr
from stream.ring import SlotTable
from stream.scoring import Scorer, Scores, ScoringModel, ranked


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

    def __init__(self, camera: str, slot: int, model: ScoringModel) -> None:
        contract = model.contract
        self.camera, self.slot = camera, slot
        self.clock = Clock(contract.frame_rate, contract.max_gap_s)
        self.scorer = Scorer(model)
        self.trackers = {head: EventTracker(camera, head, labels, contract.background, contract.events)
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


class Recognizer:
    """Recognises the actions of up to `engine.slots` cameras.

        with Recognizer.open(model="gesture") as recognizer:
            for item in recognizer.push(image_bgr, captured_at=time.time()):
                print(item)                                # Prediction | Event | Gap

    The same images at the same times give the same items, live or replayed, but for their latencies.
    Not thread-safe: use it from one thread. Leaving the `with` block closes the engine.
    """

    def __init__(self, model: ScoringModel, engine: Engine, timer: Callable[[], float] = time.perf_counter) -> None:
        """timer: gives seconds, for latencies only."""
        self.contract, self.engine = model.contract, engine
        self._model, self._timer = model, timer
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

    def push(self, image_bgr: NDArray[Any], captured_at: float, camera: str = "0", index: int | None = None,
             lost: int = 0, waited_s: float = 0.0) -> list[Item]:
        """Takes the next image of a camera; returns what it caused, in order.

        image_bgr: uint8 [H, W, 3] of any size (see `stream.images` for what else is converted);
        captured_at: seconds, on any clock that runs evenly; index: number of the frame, counted here by default;
        lost: frames the source lost since the last one; waited_s: how long the image waited before this call.

        Most cameras are faster than the model: an image between two ticks of its clock gives []. A camera joins
        with its first image. Raises FrameError for an image that cannot be used: it costs that frame only,
        and is counted as dropped. Raises UsageError when no slot is free, EngineError when the engine fails.
        """
        began = self._timer()
        stream = self._streams.get(camera) or self._join(camera)
        counts = stream.counts
        number = counts.frames if index is None else index
        counts.frames += 1
        counts.dropped += lost
        try:
            image = as_bgr(image_bgr)
            tick = stream.clock.tick(captured_at)
        except FrameError:
            counts.dropped += 1
            raise
        items: list[Item] = []
        if tick.action is not None:
            items += stream.close_events()
            items.append(Gap(camera, captured_at, tick.gap_s or 0.0, tick.action))
            self.engine.reset([stream.slot])
            stream.forget()
        if not tick.use:
            return items

        prepared = prepare(image, self.contract)
        latency = {"queue": waited_s, "preprocess": self._timer() - began, "engine": 0.0, "fuse": 0.0}
        events = self._hold(stream, captured_at, tick.held, latency)
        scores = self._step(stream, prepared, latency)
        events += self._track(stream, captured_at, scores)
        latency["total"] = waited_s + self._timer() - began
        counts.predictions += 1
        items.append(self._publish(stream, number, captured_at, scores, latency))
        return items + events

    def flush(self, camera: str = "0") -> list[Event]:
        """Ends a camera's stream: closes its open events, returns them, and frees its slot."""
        stream = self._streams.get(camera)
        closed = stream.close_events() if stream else []
        self.reset(camera)
        return closed

    def reset(self, camera: str = "0") -> None:
        """Forgets a camera, open events included: its next image starts a new stream."""
        stream = self._streams.pop(camera, None)
        if stream is not None:
            self._slots.give_back(stream.slot)

    def counts(self, camera: str = "0") -> Counts:
        """Totals of a camera since its stream began; zeros for one that has not begun."""
        stream = self._streams.get(camera)
        return replace(stream.counts) if stream else Counts()

    def _join(self, camera: str) -> _Stream:
        stream = self._streams[camera] = _Stream(camera, self._slots.take(camera), self._model)
        self.engine.reset([stream.slot])
        return stream

    def _hold(self, stream: _Stream, until: float, ticks: int, latency: dict[str, float]) -> list[Event]:
        """Fills ticks without an image with the previous one; they count for state and events alone."""
        events: list[Event] = []
        if stream.previous is None:
            return events
        since = stream.previous_at
        for tick in range(1, ticks + 1):
            scores = self._step(stream, stream.previous, latency)
            events += self._track(stream, since + (until - since) * tick / (ticks + 1), scores)
            stream.counts.held += 1
        return events

    def _step(self, stream: _Stream, prepared: Image, latency: dict[str, float]) -> Scores:
        """Advances one camera by one tick. Adds its seconds to `latency`."""
        began = self._timer()
        result = self.engine.step(prepared[None], [stream.slot])
        stepped = self._timer()
        scores = stream.scorer.score(result)
        stream.steps += 1
        stream.previous = prepared
        latency["engine"] += stepped - began
        latency["fuse"] += self._timer() - stepped
        return scores

    def _track(self, stream: _Stream, at: float, scores: Scores) -> list[Event]:
        stream.previous_at = at
        if not self._warm(stream):
            return []
        events = [event for head, tracker in stream.trackers.items()
                  for event in tracker.update(at, scores.now[head], scores.window[head])]
        stream.counts.events += sum(not event.open for event in events)
        return events

    def _warm(self, stream: _Stream) -> bool:
        return stream.steps >= self.contract.warmup_frames

    def _publish(self, stream: _Stream, number: int, at: float, scores: Scores,
                 latency: dict[str, float]) -> Prediction:
        heads = {head: HeadScores(ranked(labels, scores.now[head]), ranked(labels, scores.window[head]))
                 for head, labels in self.contract.heads.items()}
        return Prediction(camera=stream.camera, frame=number, captured_at=at, warm=self._warm(stream), heads=heads,
                          clips=scores.gates, latency_ms={part: 1000 * value for part, value in latency.items()},
                          dropped=stream.counts.dropped, held=stream.counts.held)
