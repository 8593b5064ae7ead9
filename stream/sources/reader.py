"""Live cameras: a thread reads frames into a mailbox and reconnects when the camera is lost.

    camera ──grab──► reader thread ──► Mailbox ──► frames()
                          ▲
                     lost? back off, connect again, Gap("reconnected")

Back-off: `first_pause_s`, doubled after every failure up to `longest_pause_s`, each times a random 0.5 to 1 so that
many cameras behind one switch do not reconnect at once. When the consumer has waited `give_up_s` for a frame, `frames`
raises SourceError, whatever the thread is stuck in."""

import math
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engines.decoding.images import as_bgr
from engines.errors import FrameError, SourceError
from stream.clock import unix_time
from stream.frame import Frame, Gap, Picture
from stream.sources.base import Policy, Source, SourceInfo
from stream.sources.live_clock import LiveClock
from stream.sources.mailbox import Mailbox

FAILED_GRABS = 5  # in a row; then the camera counts as lost
QUEUE_FRAMES = 64  # with policy "every"
JOIN_S = 0.5  # for the reader to leave a grab; a process should not end inside a driver


class Capture(ABC):
    """A camera, or a connection to one, that gives images one by one."""

    size_hw: tuple[int, int] | None = None
    fps: float | None = None  # nominal rate
    paced = False  # whether frames come in bursts, each with its own time, and are to be given at these times

    @abstractmethod
    def grab(self) -> float | None:
        """Takes the next image: its time on the stream's own clock in seconds, NaN where it has none.
        None when there is no image now (end, damage, timeout)."""

    @abstractmethod
    def retrieve(self) -> Picture | None:
        """The image taken by `grab`; None, or FrameError, when it cannot be decoded."""

    @abstractmethod
    def release(self) -> None:
        """Gives the camera or connection back."""


Connect = Callable[[], Capture | None]


@dataclass(frozen=True)
class Timeouts:
    """How long a live source waits, in seconds."""

    open_s: float  # for the first connection
    give_up_s: float  # for a frame
    first_pause_s: float = 0.25  # before it reconnects
    longest_pause_s: float = 5.0


@dataclass(frozen=True)
class Timing:
    """Sources of time and chance, which tests replace."""

    wall: Callable[[], float] = unix_time
    steady: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


class LiveSource(Source):
    """A camera that is there or not. captured_at is the Unix time at which a frame was taken (`LiveClock`).
    connect: opens the camera; None, or SourceError with the cause, when it cannot; capture: one that is open already;
    what: the camera, for messages; policy: "newest" (and "auto") keeps one frame and counts the overwritten, "every"
    makes the reader wait for the consumer.
    Raises SourceError when the camera cannot be opened within `timeouts.open_s`."""

    def __init__(self, connect: Connect, what: str, camera: str, timeouts: Timeouts, policy: Policy = "auto",
                 timing: Timing | None = None, capture: Capture | None = None) -> None:
        self._connect, self._what, self._timeouts = connect, what, timeouts
        self._timing = timing or Timing()
        self._clock = LiveClock(self._timing.wall, self._timing.steady)
        self._failure = ""  # why it could not be connected again
        self.notes: list[str] = []
        self._started = False
        self._mailbox = Mailbox(QUEUE_FRAMES if policy == "every" else 1, newest=policy != "every")
        capture = capture or connect_within(timeouts.open_s, connect, what)
        self._capture: Capture | None = capture
        self._clock.restart(capture.fps)
        self._pause_s = timeouts.first_pause_s
        self.info = SourceInfo(camera, True, capture.size_hw, capture.fps, None)

    def close(self) -> None:
        super().close()
        self._mailbox.close()
        if not self._started and self._capture is not None:
            self._capture.release()

    def frames(self) -> Iterator[Frame | Gap]:
        if self._closed:
            return
        self._started = True
        reader = threading.Thread(target=self._read, name=f"reader of {self.info.camera}", daemon=True)
        reader.start()
        try:
            while (queued := self._mailbox.take(self._timeouts.give_up_s, self._timing.steady)) is not None:
                frame, gaps = queued
                self.lost += frame.lost
                yield from gaps
                yield frame
        except TimeoutError as error:
            raise SourceError(f"{self._what}: no frame for {self._timeouts.give_up_s:g} s" +
                              (f" ({self._failure})" if self._failure else ""),
                              "a camera that keeps giving frames",
                              "check the camera and its connection, then start again") from error
        finally:
            self.close()
            reader.join(JOIN_S)

    def _read(self) -> None:
        """The reader thread; whatever ends it goes to the mailbox."""
        failure: BaseException | None = None
        try:
            self._read_until_closed()
        except BaseException as error:
            failure = error
        if self._capture is not None:
            self._capture.release()
        self._mailbox.close(None if self._closed else failure)

    def _read_until_closed(self) -> None:
        index, failed_grabs, lost = -1, 0, 0
        latest_at, again = math.inf, False
        capture = self._capture
        while not self._closed:
            if capture is None or failed_grabs >= FAILED_GRABS:
                capture, failed_grabs, again = self._reconnect(), 0, True
                continue
            if (stated_s := capture.grab()) is None:
                failed_grabs += 1
                continue
            failed_grabs, taken_s = 0, self._clock.place(stated_s, capture.paced)
            picture = _retrieve_bgr(capture)
            if picture is None:
                lost += 1
                continue
            if capture.paced and not self._wait_until(taken_s, self._timing.steady, self._timing.sleep):
                return
            captured_at = self._clock.unix_s + taken_s
            gap = Gap(self.info.camera, captured_at, max(captured_at - latest_at, 0.0), "reconnected")
            index += 1 + lost
            self._mailbox.put(Frame(picture, captured_at, index, self.info.camera, lost), (gap,) if again else ())
            latest_at, lost, again = captured_at, 0, False
            self._pause_s = self._timeouts.first_pause_s

    def _reconnect(self) -> Capture | None:
        """Tries until the camera is back; None when the source was closed meanwhile."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        timing = self._timing
        while self._wait_until(timing.steady() + self._pause_s * (0.5 + 0.5 * timing.chance()), timing.steady,
                               timing.sleep):
            self._pause_s = min(2 * self._pause_s, self._timeouts.longest_pause_s)
            try:
                self._capture = self._connect()
            except SourceError as error:
                self._failure = error.got
            if self._capture is not None:
                self._failure = ""
                self._clock.restart(self._capture.fps)
                break
        return self._capture


def _retrieve_bgr(capture: Capture) -> Picture | None:
    """The image just grabbed, as BGR or what makes it; None for one that cannot be decoded or used."""
    try:
        picture = capture.retrieve()
        return picture if picture is None or callable(picture) else as_bgr(picture)
    except FrameError:
        return None


def connect_within(seconds: float, connect: Connect, what: str) -> Capture:
    """Connects, and waits `seconds` at most: name look-up and drivers have no timeout. Raises SourceError."""
    found: list[Capture | BaseException | None] = []

    def attempt() -> None:
        try:
            found.append(connect())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=attempt, name=f"opening {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    outcome = found[0] if found else None
    if isinstance(outcome, BaseException):
        raise outcome
    if outcome is None:
        raise SourceError(f"{what}: " + ("cannot be opened" if found else f"no answer within {seconds:g} s"),
                          "a camera or stream that gives frames",
                          "check that it is plugged in, switched on, reachable, and not in use by another program")
    return outcome
