"""Stand-ins for the seams: source, sink, and an engine with real state beside a model that agrees with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np

from engines.decoding.video import DecodedFrame, VideoReader
from engines.errors import SinkError
from engines.model.contract import Contract
from engines.networks.config import NetworkConfig
from engines.runtime.engine import Engine, StepResult
from stream.frame import Frame, Gap, Image, Record
from stream.sinks.base import Sink
from stream.sources.base import Source, SourceInfo
from stream.sources.reader import Capture
from stream.window import Fusion

LABELS = ("left", "right", "none")


def contract(**changes: Any) -> Contract:
    """A small contract: 10 frames/s, clips of 3 frames, windows of 4 clips, no warm-up."""
    size_hw = changes.pop("input_size_hw", (16, 16))
    fields: dict[str, Any] = {
        "name": "fake", "network": NetworkConfig(module="tsn", backbone="fake", input_size_hw=size_hw),
        "heads": {"gesture": LABELS}, "frame_rate": 10.0, "cover_hw": (16, 16), "receptive_frames": 8,
        "warmup_frames": 0, "clip_frames": 3, "window_clips": 4, "max_gap_s": 1.0, "background": "none"}
    return Contract(**{**fields, **changes})


class FakeModel:
    """Scores features [blue, red, bias]: a blue picture is "left", a red one "right", a black one "none"."""

    weights_KD = np.array([[12, -12, -4], [-12, 12, -4], [0, 0, 2]], np.float32)
    digest = "fa" * 32

    def __init__(self, clip_fusion: Fusion | None = None, **changes: Any) -> None:
        self.contract, self.clip_fusion = contract(**changes), clip_fusion

    def head_logits(self, features_D: np.ndarray) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.contract.heads, self.weights_KD @ features_D)

    def require_taught(self) -> Self:
        return self

    def with_hop(self, hop: int | None) -> Self:
        assert hop is None
        return self


class FakeEngine(Engine):
    """A leaky mean of the picture's colour is its state, so every earlier frame shows in the output."""

    name, precision, keep = "fake", "f32", 0.5

    def __init__(self, model: FakeModel, slots: int = 4, fail_at: int | None = None) -> None:
        self.model, self.contract, self.slots = model, model.contract, slots
        self.steps, self.fail_at, self.closed = 0, fail_at, False
        self.state_SD = np.zeros((slots, 2), np.float32)

    def _step(self, frames_u8_BHWC: np.ndarray, slots: Sequence[int]) -> StepResult:
        self.steps += 1
        colour_BD = frames_u8_BHWC[..., [0, 2]].mean(axis=(1, 2), dtype=np.float32) / 255
        rows = list(slots)
        self.state_SD[rows] = self.keep * self.state_SD[rows] + (1 - self.keep) * colour_BD
        features_BD = np.concatenate([self.state_SD[rows], np.ones((len(rows), 1), np.float32)], axis=1)
        logits = features_BD @ self.model.weights_KD.T
        return StepResult(features_BD, dict.fromkeys(self.contract.heads, logits))

    def _reset(self, slots: Sequence[int]) -> None:
        self.state_SD[list(slots)] = 0

    @property
    def state_bytes(self) -> int:
        return self.state_SD[0].nbytes

    def close(self) -> None:
        self.closed = True


class FakeSource(Source):
    """Plays items; an exception among them is raised in its turn, a function called."""

    def __init__(self, items: Iterable[Frame | Gap | Exception | Callable[[], object]], live: bool = False) -> None:
        self.items, self.closed, self.given = list(items), False, 0
        self.info = SourceInfo("cam", live, (24, 32), 10.0, None)

    def frames(self) -> Iterator[Frame | Gap]:
        for item in self.items:
            if self.closed:
                return
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
                continue
            self.given += 1
            yield item

    def close(self) -> None:
        self.closed = True


class FakeSink(Sink):
    """Keeps what it is given; fails with `failure` at its `fail_at`-th write."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.frames: list[Frame | None] = []
        self.records: list[Record] = []
        self.fail_at, self.closed = fail_at, False

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if len(self.frames) == self.fail_at:
            raise SinkError("no space", "some space", "free some")
        self.frames.append(frame)
        self.records += records

    def close(self) -> None:
        self.closed = True


class FakeTorchTensorRT:
    """The module torch_tensorrt as far as it is used here, without TensorRT: the exported program stays what it is.

    builds: settings of each build; loads: how often a file was loaded; left: what a build leaves to torch, None for
    everything; error: raised by the builder; unreadable: files cannot be loaded.
    """

    __version__ = "2.13.0"
    programs: ClassVar[dict[str, Any]] = {}  # by what is in their files; of all instances, as the engine cache is

    def __init__(self) -> None:
        self.builds: list[dict[str, Any]] = []
        self.loads = 0
        self.left: list[str] | None = []
        self.error: Exception | None = None
        self.unreadable = False
        self.dynamo = self

    def compile(self, program: Any, **settings: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.builds.append(settings)
        parts = [] if self.left is None else ["_run_on_acc_0", *self.left]
        return SimpleNamespace(program=program, named_children=lambda: [(name, None) for name in parts])

    def save(self, built: Any, path: str, arg_inputs: Sequence[Any]) -> None:
        content = f"program {len(self.programs)}"
        Path(path).write_text(content)
        self.programs[content] = built.program

    def load(self, path: str) -> Any:
        self.loads += 1
        if self.unreadable:
            raise ValueError("no such program")
        return self.programs[Path(path).read_text()]


class FakeCapture(Capture):
    """Plays `script`: an image with its stream time, None for a failed grab, an exception to raise.

    After the script every grab fails.
    """

    def __init__(self, script: Iterable[tuple[Image | None, float] | BaseException | None],
                 fps: float | None = None, paced: bool = False) -> None:
        self.paced = paced
        self._script: Iterator[tuple[Image | None, float] | BaseException | None] = iter(script)
        self._image: Image | None = None
        self.fps = fps
        self.released = False

    def grab(self) -> float | None:
        step = next(self._script, None)
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            self._image = step[0]
        return None if step is None else step[1]

    def retrieve(self) -> Image | None:
        return self._image

    def release(self) -> None:
        self.released = True


class FakeReader(VideoReader):
    """Plays `script`: an image with its stated time, or None for one that does not decode."""

    def __init__(self, script: Iterable[tuple[Image | None, float] | None], rate: float = 0.0) -> None:
        self.name, self.notes, self.rate, self.count, self.size_hw, self.closed = "clip.mp4", [], rate, 0, (8, 8), False
        self._origin_s, self._decoded = 0.0, iter(())
        self._ahead = deque(None if one is None or one[0] is None else DecodedFrame(one[1], partial(np.copy, one[0]))
                            for one in script)

    def close(self) -> None:
        self.closed = True
