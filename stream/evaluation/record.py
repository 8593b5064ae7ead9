"""The full scores of a stream, tick by tick, so that other thresholds can be tried without running it again.
They lie in a temporary file that vanishes with the record: memory stays flat however long the stream is."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import SinkError
from engines.model.contract import Contract, EventRule
from stream.events import track_all
from stream.frame import Event
from stream.scoring import Probs, Scores
from stream.trackers import event_trackers


class ScoreSequence(NamedTuple):
    """Scores of one head at the ticks between two resets."""

    times_T: NDArray[np.float64]  # seconds
    now_TK: Probs
    window_TK: Probs


class ScoreRecord:
    """Scores of the warm ticks of one camera: written while it plays, closed, then read as often as needed."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._files = {head: tempfile.TemporaryFile() for head in contract.heads}  # noqa: SIM115 - closed by `close`
        self._maps: dict[str, Probs] = {}  # once closed
        self._times = array("d")
        self._starts: list[int] = []  # row of the first tick of each run
        self._steps = 0

    def append(self, at: float, steps: int, scores: Scores) -> None:
        """Adds one tick; steps that do not rise mean a reset. Raises SinkError where the disk is full."""
        if steps < self.contract.warmup_frames:
            return
        if steps <= self._steps or not self._starts:
            self._starts.append(len(self._times))
        self._steps = steps
        self._times.append(at)
        with _disk_errors():
            for head, file in self._files.items():
                file.write(np.stack([scores.now[head], scores.window[head]]).astype(np.float64).tobytes())

    def end(self) -> None:
        """The stream has ended: the next tick, if any, begins another."""
        self._steps = np.iinfo(np.int64).max

    def close(self, keep: bool = True) -> None:
        """Ends the record; if `keep`, it stays readable as long as this object lives."""
        for head, file in self._files.items():
            if keep and not file.closed:
                self._maps[head] = self.scores(head)
            with suppress(OSError):  # of what is not kept there may be more than the disk holds
                file.close()

    @property
    def times_T(self) -> NDArray[np.float64]:
        """When each tick was, in seconds."""
        return np.array(self._times)

    def scores(self, head: str) -> Probs:
        """Probabilities of all ticks, [T, 2, K]: now and window. Lies on disk."""
        if head in self._maps:
            return self._maps[head]
        shape = (len(self._times), 2, len(self.contract.heads[head]))
        if not shape[0]:
            return np.zeros(shape)
        with _disk_errors():
            self._files[head].flush()
            return np.memmap(self._files[head], np.float64, "r", shape=shape)

    def sequences(self, head: str) -> Iterator[ScoreSequence]:
        """The sequences between resets."""
        scores, times_T = self.scores(head), self.times_T
        for first, last in zip(self._starts, [*self._starts[1:], len(self._times)], strict=True):
            yield ScoreSequence(times_T[first:last], scores[first:last, 0], scores[first:last, 1])

    def windows(self, head: str) -> Probs:
        """Window scores at every full window's end, so that none shares frames with another, [windows, K]."""
        every = self.contract.clip_frames * self.contract.window_clips
        found = [run.window_TK[every - 1::every] for run in self.sequences(head)]
        return np.concatenate(found) if found else np.zeros((0, len(self.contract.heads[head])))


def find_events(sequences: Iterable[ScoreSequence], contract: Contract, head: str, rule: EventRule) -> Iterator[Event]:
    """The closed events of a head under a rule: those that the live path would give."""
    for run in sequences:
        yield from track_all(event_trackers(contract, "0", rule)[head], run.times_T, run.now_TK, run.window_TK)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SinkError(f"scores for a temporary file ({error.strerror})", "some space in the temporary folder",
                        f"free some in {tempfile.gettempdir()}, or name another in TMPDIR") from error
