"""The records that everything in `stream` passes on, and their JSON form.

    Frame ──► Prediction, Event, Gap ──► Summary

Times are in seconds: stream time (0 at the start) for files, Unix time for live cameras."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # BGR, [H, W, 3]
Picture = Image | Callable[[], Image]  # or what makes the image, once, and raises FrameError where that cannot be
ENGINE_RESTARTED = "engine restarted"
Points = tuple[tuple[float, float], ...]  # x, y
Ranked = tuple[tuple[str, float], ...]  # (label, calibrated probability), best first


@dataclass(frozen=True, slots=True)
class _PlainRecord:
    """A record whose JSON form is its fields as they stand."""

    def as_json(self) -> dict[str, Any]:
        values = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()
                  if value is not None}
        return {"type": type(self).__name__.lower(), **values}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `as_json` has written; keys it does not know are passed over."""
        return cls(**{each.name: record[each.name] for each in fields(cls)
                      if each.name in record or each.default is MISSING})


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image."""

    picture: Picture
    captured_at: float
    index: int  # number of the frame in its source, from 0
    camera: str
    lost: int = 0  # frames the source knows it lost since the previous one (unreadable, skipped, overwritten)

    @property
    def image_bgr(self) -> Image:
        """uint8 [H, W, 3]; a video's is made when it is first looked at. Raises FrameError where that cannot be."""
        return self.picture() if callable(self.picture) else self.picture


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Top scores of one head: `now` at this frame, `window` fused over the sliding window."""

    now: Ranked
    window: Ranked

    def as_json(self) -> dict[str, Any]:
        return {name: [[label, round(score, 4)] for label, score in getattr(self, name)] for name in ("now", "window")}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The scores at one tick of the model's clock."""

    camera: str
    frame: int  # number of the camera frame it was made from
    captured_at: float
    warm: bool  # the network has had enough frames since its last reset
    heads: dict[str, HeadScores]
    clips: tuple[float, ...]  # gate of each clip in the window, oldest first
    latency_ms: dict[str, float]  # parts and their total
    dropped: int  # frames lost since the stream began
    held: int  # ticks filled with the previous image since the stream began
    hands: Mapping[str, Points] | None = None  # in view, left or right, of a model that looks for them: 21 landmarks as
    # shares of the picture's width and height

    def as_json(self) -> dict[str, Any]:
        return {"type": "prediction", "camera": self.camera, "frame": self.frame,
                "captured_at": round(self.captured_at, 4), "warm": self.warm,
                "heads": {name: scores.as_json() for name, scores in self.heads.items()},
                "clips": [round(gate, 3) for gate in self.clips],
                "latency_ms": {part: round(ms, 3) for part, ms in self.latency_ms.items()},
                "dropped": self.dropped, "held": self.held, **({} if self.hands is None else {"hands": {
                    side: [[round(x, 4), round(y, 4)] for x, y in points] for side, points in self.hands.items()}})}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `as_json` has written."""
        heads = {name: HeadScores(*(tuple((label, score) for label, score in scores[part])
                                    for part in ("now", "window")))
                 for name, scores in record["heads"].items()}
        hands = {side: tuple((x, y) for x, y in points) for side, points in record.get("hands", {}).items()}
        return cls(record["camera"], record["frame"], record["captured_at"], record["warm"], heads,
                   tuple(record["clips"]), record["latency_ms"], record["dropped"], record["held"],
                   hands if "hands" in record else None)


@dataclass(frozen=True, slots=True)
class Event(_PlainRecord):
    """One recognised action."""

    camera: str
    head: str
    label: str
    started_at: float
    ended_at: float  # of an open event, the latest time it was active
    score: float
    open: bool  # it has not ended yet
    number: int | None = field(default=None, compare=False)  # of its head's, where several may be open at a time
    id: str | None = field(default=None, compare=False)  # of no other event; a service gives it when it opens
    clip: str | None = field(default=None, compare=False)  # file name of its video, if one is made


@dataclass(frozen=True, slots=True)
class Gap(_PlainRecord):
    """A hole in a stream: `seconds` without a usable frame before `at`.
    action: "reset" (longer than the model's limit), "new stream" (time ran backwards), "reconnected" (the camera was
    lost and came back), ENGINE_RESTARTED (the camera's state was lost)."""

    camera: str
    at: float
    seconds: float
    action: str


@dataclass(frozen=True, slots=True)
class Camera(_PlainRecord):
    """What a service has to say of one of its cameras. action: "joined", "returned", "left", "refused"."""

    camera: str
    at: float
    action: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of one camera's stream."""

    camera: str
    frames: int
    predictions: int
    events: int
    dropped: int
    fps: float  # camera frames handled per second of wall time
    latency_ms: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"type": "summary", **asdict(self), "fps": round(self.fps, 2),
                "latency_ms": {part: round(ms, 3) for part, ms in self.latency_ms.items()}}


@dataclass(frozen=True, slots=True)
class OtherRecord:
    """A record of a type that this version does not know, which is passed on as it came."""

    camera: str
    values: Mapping[str, Any]  # the JSON object

    def as_json(self) -> dict[str, Any]:
        return dict(self.values)


Item = Prediction | Event | Gap
Record = Prediction | Event | Gap | Camera | Summary | OtherRecord


def record_type(record: Record) -> str:
    """The `type` of its JSON object."""
    return str(record.values["type"]) if isinstance(record, OtherRecord) else type(record).__name__.lower()


def is_lasting(record: Record) -> bool:
    """Whether it belongs into a log, and to be delivered without fail: a closed event or a gap."""
    return isinstance(record, Gap) or (isinstance(record, Event) and not record.open)


def record_from_json(record: Mapping[str, Any]) -> Record:
    """What a record's `as_json` has written. Raises KeyError, TypeError or ValueError for what is none."""
    match record["type"]:
        case "prediction":
            return Prediction.from_json(record)
        case "event":
            return Event.from_json(record)
        case "gap":
            return Gap.from_json(record)
        case "camera":
            return Camera.from_json(record)
    return OtherRecord(str(record.get("camera", "")), record)


@dataclass(slots=True)
class Counts:
    """Totals of one camera since its stream began. `events`: those that have closed."""

    frames: int = 0
    predictions: int = 0
    events: int = 0
    dropped: int = 0
    held: int = 0
