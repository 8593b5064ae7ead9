"""The terminal's view of a running stream: what is recognised now, the events so far, how fast it goes.
On a terminal a live picture that fits 80x24; otherwise one plain line per event and gap. Times are the wall clock's for
live sources (14:05:03), and count from the first frame for files (1:02.5)."""

import math
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from stream.frame import Event, Frame, Gap, Ranked, Record, Summary
from stream.sinks.base import Sink, write_text
from stream.sinks.overlay import OverlayState

REDRAW_S = 0.1
_EVENTS_WIDTH = 36
_BARS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
_BARS_ASCII = {(True, True): "#", (True, False): "=", (False, True): "-", (False, False): " "}


class TerminalView(Sink):
    """Shows a stream to the person who started it; a frame costs microseconds unless it is time to redraw.
    camera, engine: names for the headline, such as "sim://gestures" and "gesture, openvino f32"; background: the label
    that means "nothing"; console: where to (standard output); clock: seconds; live: capture times are Unix time."""

    def __init__(self, camera: str, engine: str, background: str | None = None, console: Console | None = None,
                 clock: Callable[[], float] = time.monotonic, live: bool = False) -> None:
        self.console = console or Console()
        if isinstance(self.console.file, TextIOWrapper):
            self.console.file.reconfigure(errors="replace")  # a label the terminal cannot show is no fault
        self.camera, self.engine = _printable(camera), _printable(engine)
        self.state = OverlayState(background=background)
        self._clock, self._wall_times = clock, live
        self._live: Live | None = None
        self._closed, self._drawn_at, self._fps = False, -math.inf, 0.0
        self._frames = self._frames_drawn = 0

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        self.state.update(records, frame)
        if frame is not None:
            self._frames += 1
        if self._closed:
            return
        if self.console.is_terminal and self._clock() - self._drawn_at >= REDRAW_S:
            self._redraw()
        for record in records:
            if isinstance(record, Summary):
                self._summary(record)
            elif not self.console.is_terminal:
                self._line(record)

    def _summary(self, summary: Summary) -> None:
        """Ends the live picture and prints the totals of one camera."""
        self._stop()
        totals = {**{name: str(getattr(summary, name)) for name in ("frames", "predictions", "events", "dropped")},
                  "frames/s": f"{summary.fps:.1f}",
                  **{f"{part} ms": f"{ms:.1f}" for part, ms in summary.latency_ms.items()}}
        columns = (Column(name, justify="right") for name in totals)
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_row(*totals.values())
        self._print(Text(_printable(summary.camera), "bold", no_wrap=True, overflow="ellipsis"))
        self._print(table)

    def close(self) -> None:
        self._stop()
        self._closed = True

    def render(self) -> RenderableType:
        """The live picture as it is now."""
        wide = self.console.width >= 70
        left = max(20, self.console.width - 4 - (_EVENTS_WIDTH + 2 if wide else 0))
        room = max(10, self.console.height - 6)
        now_rows, event_rows = (min(12, room),) * 2 if wide else (room * 3 // 5, room * 2 // 5)
        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_column(width=left)
        if wide:
            grid.add_column(width=_EVENTS_WIDTH, no_wrap=True)
            grid.add_row(self._now(left, now_rows), self._events(event_rows))
        else:
            grid.add_row(Group(self._now(left, now_rows), self._events(event_rows)))
        head = Text.assemble((" gatestream ", "bold"), (f" {self.camera} ", "cyan"), overflow="ellipsis", no_wrap=True)
        return Panel(Group(grid, Text(), self._pace()), box=ROUNDED, title=head, title_align="left",
                     subtitle=Text(f" {self.engine} ", "dim"), subtitle_align="right", border_style="grey50")

    def _now(self, wide: int, rows: int) -> RenderableType:
        """The open events of each head and the bars under them."""
        prediction = self.state.prediction
        if prediction is None:
            return Text("waiting for the first frame", "dim")
        lines: list[RenderableType] = []
        for name, scores in prediction.heads.items():
            head = f"{_printable(name)}  " if len(prediction.heads) > 1 else ""
            room = max(1, rows // len(prediction.heads) - 3)
            lines += [self._headline(head, [event for (of, _), event in self.state.open.items() if of == name]),
                      *self._bars(scores.window[:room], dict(scores.now), wide), Text()]
        return Group(*lines[:-1])

    def _headline(self, head: str, events: Sequence[Event]) -> Text:
        if events:
            parts: list[tuple[str, str]] = []
            for event in events:
                lasting = max(0.0, self.state.captured_at - event.started_at)
                parts += [(f" {_printable(event.label)} ", f"bold black on {self._rgb(event.label)}"),
                          (f" {lasting:.1f} s ", "")]
            return Text.assemble((head, "dim"), *parts, no_wrap=True, overflow="ellipsis")
        warm = self.state.prediction is not None and self.state.prediction.warm
        return Text.assemble((head, "dim"), ("nothing now", "dim") if warm else (" warming up ", "black on yellow"))

    def _bars(self, window: Ranked, now: dict[str, float], wide: int) -> list[RenderableType]:
        """A legend, then one line per label: the upper half of a bar is for the window, the lower for this frame."""
        glyphs = _BARS_ASCII if self.console.options.ascii_only else _BARS
        label_width = max(8, min(16, wide // 3))
        length = max(4, wide - label_width - 6)
        lines: list[RenderableType] = [Text(f"{'':{label_width}}{glyphs[True, False]} window  "
                                            f"{glyphs[False, True]} now", "dim", no_wrap=True)]
        for label, score in window:
            cells = "".join(glyphs[score * length > cell + 0.5, now.get(label, 0.0) * length > cell + 0.5]
                            for cell in range(length))
            name = Text(_printable(label))
            name.truncate(label_width - 1, overflow="ellipsis", pad=True)
            bar = (cells, f"{self._rgb(label)} on grey19")
            lines.append(Text.assemble(name, " ", bar, f" {100 * score:3.0f}%", no_wrap=True))
        return lines

    def _events(self, rows: int) -> RenderableType:
        table = Table.grid(Column(width=_EVENTS_WIDTH - 23, no_wrap=True, overflow="ellipsis"),
                           Column(width=17, no_wrap=True, justify="right", style="dim"),
                           Column(width=4, no_wrap=True, justify="right"), padding=(0, 1, 0, 0), pad_edge=False)
        table.add_row(Text(f"events {self.state.closed_count}", "bold"),
                      "start   length" if self._wall_times else "start - end", Text("prob", "dim"))
        for event in list(self.state.closed)[::-1][:rows - 1]:
            table.add_row(Text(_printable(event.label), self._rgb(event.label)), self._span(event),
                          f"{event.score:.2f}")
        return table

    def _time(self, at: float) -> str:
        return time.strftime("%H:%M:%S", time.localtime(at)) if self._wall_times else self.state.shown_time(at)

    def _span(self, event: Event) -> str:
        if self._wall_times:
            return f"{self._time(event.started_at)} {event.ended_at - event.started_at:5.1f} s"
        return f"{self._time(event.started_at)} - {self._time(event.ended_at)}"

    def _pace(self) -> Text:
        """Time, speed, and everything that was lost, in one line."""
        prediction, gap = self.state.prediction, self.state.gap
        parts = [self._time(self.state.captured_at), f"{self._fps:.0f} frames/s"]
        if prediction is not None:
            parts += [f"{prediction.latency_ms.get('total', 0.0):.1f} ms", f"dropped {prediction.dropped}",
                      f"held {prediction.held}"]
        if gap is not None:
            parts.append(f"gap of {gap.seconds:.1f} s at {self._time(gap.at)}: {gap.action}")
        return Text("   ".join(parts), "dim", no_wrap=True, overflow="ellipsis")

    def _redraw(self) -> None:
        now = self._clock()
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")
            self._live.start()
        else:
            fps = (self._frames - self._frames_drawn) / (now - self._drawn_at)
            self._fps = self._fps + 0.3 * (fps - self._fps) if self._fps else fps
        self._drawn_at, self._frames_drawn = now, self._frames
        self._live.update(self.render(), refresh=True)

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.update(self.render(), refresh=True)
            live.stop()

    def _line(self, record: Record) -> None:
        if isinstance(record, Event) and not record.open:
            line = f"{self._span(record)}  {record.label}  {record.score:.2f}  ({record.head}, camera {record.camera})"
        elif isinstance(record, Gap):
            line = f"{self._time(record.at)}  gap of {record.seconds:.1f} s: {record.action}  (camera {record.camera})"
        else:
            return
        write_text(self.console.file, _printable(line) + "\n", "the terminal")

    def _print(self, what: RenderableType) -> None:
        with self.console.capture() as text:  # rich leaves the process when its reader does; a plain write does not
            self.console.print(what)
        write_text(self.console.file, text.get(), "the terminal")

    def _rgb(self, label: str) -> str:
        return "rgb({},{},{})".format(*self.state.colour(label))


def _printable(text: str) -> str:
    """The text without what would control the terminal: names come from files and networks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
