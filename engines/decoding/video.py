"""Videos and streams through PyAV: the right stream, every frame once, upright, with its time.

    with closing(VideoReader(path)) as video:
        for frame in video.frames(start_s=12.0):
            if frame is not None and wanted(frame.at_s):
                image_bgr = frame.picture()

What is never shown: a cover picture for the video, a frame that the decoder marks as corrupt, a picture that could not
be converted. Interlaced frames are deinterlaced, pixels made square, pictures mirrored and turned as the file says."""

import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.stream import Discard, Disposition

from engines.decoding.images import Image
from engines.decoding.paths import printable
from engines.decoding.picture import Deinterlacer, PictureConverter
from engines.decoding.times import RATE_RANGE, StreamTime
from engines.errors import SourceError, first_line

WANTED = "a video that FFmpeg can read (mp4, mkv, webm, avi, mov)"
CONVERT = "check that the file is complete, or convert it, e.g. with ffmpeg -i IN OUT.mp4"
MAX_FAILURES = 50  # packets in a row that do not decode; then the file has ended
UNTIMED = frozenset(("h264", "hevc", "vvc", "mpegvideo", "m4v", "mjpeg", "obu"))  # formats without times: guessed ones
TEXT_CODECS = frozenset(("ansi", "bintext", "idf", "xbin"))  # FFmpeg draws pictures of characters
MOVING_RATE = 3.0  # frames per second; a stream of fewer is a preview, where there is another
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A frame, and what its container says of its time."""

    stated_s: float  # seconds on the container's own timeline; NaN where it states none
    picture: Callable[[], Image]  # makes BGR uint8 [H, W, 3], once; raises FrameError where that cannot be


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A frame of a file."""

    at_s: float  # seconds since the file's first frame; always rising
    missing: int  # frames before it that its time shows to be missing
    picture: Callable[[], Image]


class _Picture:
    """Makes a frame's picture, once; then the frame's memory is the decoder's again."""

    def __init__(self, converter: PictureConverter, frame: av.VideoFrame) -> None:
        self._picture: Image | Callable[[], Image] = partial(converter.convert, frame)

    def __call__(self) -> Image:
        if callable(picture := self._picture):  # of two threads both may make it
            self._picture = picture = picture()
        return picture


class VideoReader:
    """An open video file, or a stream by its address; owned by one thread.
    options: of FFmpeg; timeout_s: to open, and to wait for data; live: decode with the least delay; name: for messages.
    rate: frames per second that it states, 0 where it does not, or not credibly; seconds, count: its length as stated,
    0 likewise; size_hw: of its first picture. notes: what was guessed or chosen, a line each.
    Raises SourceError for what is no video or of which no frame decodes, FFmpegError for what cannot be reached."""

    def __init__(self, where: Path | str, *, options: Mapping[str, str] | None = None,
                 timeout_s: tuple[float, float] | None = None, live: bool = False, name: str | None = None) -> None:
        av.logging.set_level(None)
        self.name, self._seekable = name or printable(where), True
        self.notes: list[str] = []
        with ExitStack() as opened:
            source: Any = where
            if isinstance(where, Path):
                source = str(where.absolute())  # so that no colon in it is taken for a protocol
                if printable(source) != source:  # FFmpeg takes UTF-8 only
                    source = opened.enter_context(open(source, "rb"))
            try:
                self._container: InputContainer = av.open(source, "r", options=dict(options or {}), timeout=timeout_s,
                                                          metadata_errors="ignore")
            except av.error.FFmpegError:
                if not isinstance(where, Path) or not isinstance(source, str) or not self._open_cut(source):
                    raise
            opened.callback(self._container.close)
            self._choose_stream(live)
            self._decoded = map(self._describe, self._whole_frames())
            self._ahead: deque[DecodedFrame | None] = deque()
            self._origin_s, self.size_hw = self._look_ahead()
            self._opened = opened.pop_all()

    def _open_cut(self, where: str) -> bool:
        """Opens an MP4 file of fragments whose end is lost, which FFmpeg finds by looking at the end first."""
        try:
            self._container = av.open(f"file:{where}", "r", "mp4", options={"seekable": "0"}, metadata_errors="ignore")
        except av.error.FFmpegError:
            return False
        self._seekable = False
        self.notes.append(f"{self.name} is cut off: what is before the cut is read")
        return True

    def _choose_stream(self, live: bool) -> None:
        """The largest one that moves, of equal ones the first; never a cover."""
        moving = [stream for stream in self._container.streams.video if not stream.disposition & NO_VIDEO]
        videos = [stream for stream in moving if stream.codec_context is not None]
        if not videos:
            raise self.unreadable("its video is of a codec that this FFmpeg cannot decode" if moving else
                                  "there is no video in it, but a cover picture" if self._container.streams.video else
                                  "there is no video in it")
        self._stream = max(videos, key=lambda stream: (min(float(stream.average_rate or 0), MOVING_RATE),
                                                       stream.codec_context.width * stream.codec_context.height))
        for stream in self._container.streams:
            stream.discard = Discard.default if stream is self._stream else Discard.all
        if len(videos) > 1:
            self.notes.append(f"{self.name}: of {len(videos)} videos in it this is read: "
                              f"{self._stream.codec_context.width}x{self._stream.codec_context.height}")
        context = self._stream.codec_context
        if context.name in TEXT_CODECS:
            raise self.unreadable("it is text")
        context.thread_type = "SLICE" if live else "AUTO"  # threads that take a frame each delay as many frames
        if multiprocessing.parent_process() is not None and not live:
            context.thread_count = 1  # workers share the cores already
        self.format, self.codec = self._container.format.name, context.name
        rates = (float(rate or 0) for rate in (self._stream.average_rate, self._stream.guessed_rate))
        self.rate = next((rate for rate in rates if RATE_RANGE[0] <= rate <= RATE_RANGE[1]), 0.0)
        self.count = self._stream.frames
        length_s = float((self._container.duration or 0) / av.time_base)
        if self.format.startswith("matroska"):  # counts from 0, and not from its first frame
            length_s = max(length_s - (self._container.start_time or 0) / av.time_base, 0.0)
        self.seconds = self.count / self.rate if self.count and self.rate else length_s
        if length_s > 2 * self.seconds + 10:
            self.notes.append(f"{self.name}: {self.count} frames, {self.seconds:.0f} s of them, in {length_s:.0f} s: "
                              "its times jump")
        self._deinterlacer, self._converter = Deinterlacer(), PictureConverter(self._stream.sample_aspect_ratio)
        if self.format in UNTIMED and not live:
            self.notes.append(f"{self.name} states no times: {self.rate:g} frames/s are assumed")

    def _look_ahead(self) -> tuple[float, tuple[int, int]]:
        """Decodes up to the first frame whose picture can be had: its time, and its size."""
        for frame in self._decoded:
            self._ahead.append(frame)
            if frame is not None:
                height, width = frame.picture().shape[:2]
                return frame.stated_s, (height, width)
        raise self.unreadable(f"not one picture of its {self.codec} video can be decoded")

    def close(self) -> None:
        """Releases the file or connection."""
        self._opened.close()

    def decoded(self) -> Iterator[DecodedFrame | None]:
        """Frames in the order in which they are shown; None for what does not decode or is corrupt. Raises FFmpegError
        where a stream breaks off."""
        while self._ahead:
            yield self._ahead.popleft()
        yield from self._decoded

    def frames(self, start_s: float = 0.0) -> Iterator[TimedFrame | None]:
        """Each frame of a file with its time; None as above. From the keyframe at `start_s` or before, or from the
        start of a file that has no such places. Raises SourceError where the disk or connection breaks off."""
        time = StreamTime(self.rate)
        try:
            if start_s > 0 or not self._ahead:
                self._seek(start_s)
            for frame in self.decoded():
                if frame is None:
                    yield None
                    continue
                first_s = max(frame.stated_s - self._origin_s, 0.0) if start_s > 0 else 0.0
                at_s, missing = time.next(frame.stated_s, first_s)
                yield TimedFrame(at_s, missing, frame.picture)
                del frame
        except (av.error.FFmpegError, OSError) as error:  # OSError: of a file that Python reads for it
            raise SourceError(f"{self.name} breaks off ({reason_of(error)})", "a readable file",
                              "check the disk or the connection it comes from") from error
        if time.jump_s:
            self.notes.append(f"{self.name}: its times jump by {time.jump_s:.0f} s, as one frame's step they count")

    def _seek(self, start_s: float) -> None:
        if not self._seekable:
            return
        self._ahead.clear()
        self._deinterlacer = Deinterlacer()
        try:
            unit_s = float(self._stream.time_base or 0)
            self._container.seek(int((self._origin_s + start_s) / unit_s), stream=self._stream)
        except (av.error.FFmpegError, ValueError, OverflowError, ZeroDivisionError):
            self._container.seek(0)
        self._decoded = map(self._describe, self._whole_frames())

    def _describe(self, frame: av.VideoFrame | None) -> DecodedFrame | None:
        return None if frame is None else DecodedFrame(math.nan if frame.time is None else frame.time,
                                                       _Picture(self._converter, frame))

    def _whole_frames(self) -> Iterator[av.VideoFrame | None]:
        """Decoded frames of whole lines."""
        untimed = self.format == "avi"  # has no times of presentation: those that FFmpeg makes up jump
        for frame in self._packets():
            if frame is None or frame.is_corrupt:
                yield None
                continue
            if untimed or frame.pts is None:
                frame.pts = frame.dts
            yield from self._deinterlacer.push(frame)
            del frame  # whose memory the decoder fills again, while it is in the processor's cache
        yield from self._deinterlacer.push(None)

    def _packets(self) -> Iterator[av.VideoFrame | None]:
        """Decoded frames, as the decoder gives them."""
        packets, failures = self._container.demux(self._stream), 0
        while failures < MAX_FAILURES:
            try:
                if (packet := next(packets, None)) is None:
                    return
                found: list[Any] = packet.decode()
            except EOFError:
                return
            except IndexError:  # PyAV's, at a packet of a stream that damage or a new programme has added
                packets = self._container.demux(self._stream)
                continue
            except av.error.InvalidDataError:
                failures += 1
                packets = self._container.demux(self._stream)
                yield None
                continue
            failures = 0 if found else failures
            while found:
                yield found.pop(0)

    def unreadable(self, why: str) -> SourceError:
        """The error of a file that cannot be used."""
        return SourceError(f"{self.name}: {why}", WANTED, CONVERT)


def open_video(path: Path) -> VideoReader:
    """Opens a file. Raises SourceError with what is wrong with it."""
    name = printable(path)
    if not path.is_file():  # nor may a pipe be opened: it waits for who writes
        raise SourceError(f"{name}: it {'is no file' if path.exists() else 'does not exist'}", WANTED, "check the path")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError(f"{name}: the file is empty", WANTED, "get it again")
        return VideoReader(path)
    except av.error.FFmpegError as error:
        raise SourceError(f"{name}: the file is no video, or its header is damaged or cut off: it cannot be opened "
                          f"({reason_of(error)})", WANTED, CONVERT) from error
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror or error}", "a readable video file",
                          "check the permissions of the file") from error


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system says, without the address, in which a password may stand."""
    return str(getattr(error, "strerror", None) or first_line(error))
