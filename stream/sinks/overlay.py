"""What is recognised, drawn onto the camera image: bars, the open event, the last events, times.

    state.update(records, frame)  ──►  draw(image_bgr, state)

The terminal's view uses the state alone."""

import colorsys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from zlib import crc32

import cv2
import numpy as np

from stream.frame import ENGINE_RESTARTED, Event, Frame, Gap, Image, Points, Prediction, Record

TOP = 3  # bars per head
SMALLEST_HW = (60, 80)  # no text can be read on less
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _GREY, _DARK, _AMBER = (245, 245, 245), (200, 200, 200), (28, 24, 22), (60, 180, 255)
_HANDS = {"left": (255, 160, 60), "right": (40, 140, 255)}
_BONES = (0, 1, 2, 3, 4), (0, 5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (0, 17, 18, 19, 20), (5, 9, 13, 17)

Colour = tuple[int, int, int]


@dataclass(slots=True)
class OverlayState:
    """What one camera's records amount to at this moment."""

    background: str | None = None  # the label that means "nothing", shown in grey
    prediction: Prediction | None = None
    open: dict[tuple[str, int | None], Event] = field(default_factory=dict)  # by head and number
    closed: deque[Event] = field(default_factory=lambda: deque(maxlen=64))  # the latest, newest last
    closed_count: int = 0
    gap: Gap | None = None
    origin: float | None = None  # capture time of the first frame, the zero of shown times
    captured_at: float = 0.0

    def update(self, records: Sequence[Record], frame: Frame | None = None) -> None:
        """Takes the records of one camera frame, and the frame for its time."""
        if frame is not None:
            self.captured_at = frame.captured_at
            self.origin = frame.captured_at if self.origin is None else self.origin
        for record in records:
            if isinstance(record, Prediction):
                self.prediction = record
            elif isinstance(record, Gap):
                self.gap = record
                if record.action == ENGINE_RESTARTED:  # what was open then never closes
                    self.open.clear()
            elif isinstance(record, Event) and record.open:
                self.open[record.head, record.number] = record
            elif isinstance(record, Event):
                self.open.pop((record.head, record.number), None)
                self.closed.append(record)
                self.closed_count += 1

    def colour(self, label: str) -> Colour:
        """Red, green, blue: a label's own, grey for the background."""
        return (150, 150, 150) if label == self.background else label_colour(label)

    def shown_time(self, captured_at: float) -> str:
        """Minutes and seconds since the first frame, such as 1:02.5."""
        tenths = max(0, round(10 * (captured_at - (self.origin or 0.0))))
        return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


@lru_cache(maxsize=1024)
def label_colour(label: str) -> Colour:
    """A label's own colour (red, green, blue): the same in every picture, run and program."""
    number = crc32(label.encode("utf-8", "replace"))
    red, green, blue = colorsys.hsv_to_rgb(number % 359 / 359, (0.5, 0.65, 0.8)[number // 359 % 3], 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image_bgr: Image, state: OverlayState) -> Image:
    """A copy of the image with the state drawn over it; everything scales with the image.
    image_bgr: uint8 [H, W, 3], readable from 160x120 on; below SMALLEST_HW nothing is drawn."""
    image = image_bgr.copy()
    height, width = image.shape[:2]
    if height < SMALLEST_HW[0] or width < SMALLEST_HW[1]:
        return image
    if state.prediction is not None and state.prediction.hands:
        draw_hands(image, state.prediction.hands)
    pen = _Pen(image, state)
    pen.scores()
    pen.events()
    pen.footer()
    pen.banner()
    return image


def draw_hands(image_bgr: Image, hands: Mapping[str, Points]) -> None:
    """Draws the hands of a Prediction onto the image, uint8 [H, W, 3]: the left one in blue, the right one in orange,
    palm and fingers as lines, landmarks as dots."""
    height, width = image_bgr.shape[:2]
    thick = max(1, round(min(height, width) / 240))
    for side, landmarks in hands.items():
        points = np.rint(np.array(landmarks) * (width, height)).clip(-9999, 9999).astype(np.int32)
        colour = _HANDS[side]
        cv2.polylines(image_bgr, [points[list(line)] for line in _BONES], False, colour, thick, cv2.LINE_AA)
        for x, y in points.tolist():
            cv2.circle(image_bgr, (x, y), 2 * thick, _WHITE, -1, cv2.LINE_AA)
            cv2.circle(image_bgr, (x, y), 2 * thick, colour, thick, cv2.LINE_AA)


class _Pen:
    """Draws the parts of one picture. All sizes follow from `line`, the height of a line of text in pixels."""

    def __init__(self, image: Image, state: OverlayState) -> None:
        self.image, self.state = image, state
        self.height, self.width = image.shape[:2]
        self.line = max(12, round(min(self.height / 24, self.width / 30)))
        self.margin = self.line // 2
        self.panel_width = min(self.width - 2 * self.margin, 15 * self.line)
        self.footer_top = self.height - self.line - self.margin

    def scores(self) -> None:
        """Top left: bars of the window's best labels, under each a thin one for `now`; the clips' gates."""
        prediction, line = self.state.prediction, self.line
        if prediction is None:
            return
        room = int((self.footer_top - 3.2 * line) // line) if self.height >= 200 else TOP
        rows: list[tuple[str, float | None, float]] = []  # label, window, now; of several heads, each's name before
        for name, scores in prediction.heads.items():
            now_of = dict(scores.now)
            rows += [(name, None, 0.0)] if len(prediction.heads) > 1 else []
            rows += [(label, score, now_of.get(label, 0.0)) for label, score in scores.window[:TOP]]
        rows = rows[:room]
        strip = 0.7 * line if len(prediction.clips) > 1 and len(rows) < room + 1 and self.height >= 200 else 0
        x, y = self.margin, self.margin
        self._panel(x, y, self.panel_width, round(len(rows) * line + strip + 0.5 * line))
        inner, top = x + line // 3, y + line // 4
        for label, window, now in rows:
            if window is None:
                self._text(label, inner, top, line, _GREY)
            else:
                self._bar(label, window, now, inner, top, self.panel_width - 2 * (line // 3))
            top += line
        if strip:
            self._gates(prediction.clips, inner, top + line // 5, self.panel_width - 2 * (line // 3), line // 3)

    def events(self) -> None:
        """Top right: the latest events, newest first, where there is room beside the bars."""
        line = self.line
        wide = min(12 * line, self.width - self.panel_width - 3 * self.margin)
        closed = list(self.state.closed)[-5:][::-1]
        if wide < 9 * line or not closed:
            return
        x, y = self.width - self.margin - wide, self.margin
        self._panel(x, y, wide, round(len(closed) * line + 0.5 * line))
        top = y + line // 4
        for event in closed:
            times = f"{self.state.shown_time(event.started_at)} - {self.state.shown_time(event.ended_at)}"
            times_width = self._width(times, 0.85)
            colour = self._colour(event.label)
            cv2.circle(self.image, (x + line * 2 // 3, top + line // 2), max(2, line // 5), colour, -1, cv2.LINE_AA)
            self._text(self._fit(event.label, wide - times_width - 2 * line), x + line * 7 // 6, top, line, _WHITE)
            self._text(times, x + wide - times_width - line // 3, top, line, _GREY, 0.85)
            top += line

    def footer(self) -> None:
        """Along the bottom: time, latency, frames lost, or that the network has not seen enough yet."""
        state, line, newest = self.state, self.line, self.state.prediction
        parts = [state.shown_time(state.captured_at)]
        if newest is not None:
            parts.append(f"{newest.latency_ms.get('total', 0.0):.1f} ms")
            parts += ["no hand in view"] if newest.hands == {} else []
            parts += [f"{n} {lost}" for n, lost in ((newest.dropped, "dropped"), (newest.held, "held")) if n]
        text = self._fit("   ".join(parts), self.width - 2 * self.margin)
        self._panel(0, self.footer_top + self.margin, self.width, self.height - self.footer_top - self.margin)
        self._text(text, self.margin, self.footer_top + self.margin, line, _WHITE, 0.9)
        if newest is not None and not newest.warm:
            marker = "warming up"
            left = self.width - self.margin - self._width(marker, 0.9)
            if left > self.margin + self._width(text, 0.9) + line:
                self._text(marker, left, self.footer_top + self.margin, line, _AMBER, 0.9)

    def banner(self) -> None:
        """Above the footer, in the middle: the labels of the events that are open now, a banner for each."""
        line, big = self.line, 1.5
        bottom = self.footer_top + self.margin // 2
        for event in self.state.open.values():
            label = self._fit(event.label, self.width - 4 * line, big)
            lasting = f"{max(0.0, self.state.captured_at - event.started_at):.1f} s"
            wide = self._width(label, big) + self._width(lasting, 0.9) + 2 * line
            tall = round(1.9 * line)
            x, y = max(self.margin, (self.width - wide) // 2), bottom - tall
            self._panel(x, y, min(wide, self.width - 2 * self.margin), tall, strength=0.85)
            cv2.rectangle(self.image, (x, y), (x + max(2, line // 4), bottom - 1), self._colour(event.label), -1)
            self._text(label, x + line * 2 // 3, y + (tall - round(big * line)) // 2, round(big * line),
                       self._colour(event.label), big)
            if x + wide <= self.width - self.margin:
                self._text(lasting, x + wide - self._width(lasting, 0.9) - line // 2, y + (tall - line) // 2, line,
                           _WHITE, 0.9)
            bottom = y - self.margin // 2

    def _bar(self, label: str, window: float, now: float, x: int, y: int, wide: int) -> None:
        line = self.line
        label_width, number_width = round(0.42 * wide), self._width("100%", 0.85)
        left, length = x + label_width, max(4, wide - label_width - number_width - line // 3)
        thick, thin = max(3, round(0.42 * line)), max(1, round(0.12 * line))
        top = y + (line - thick - thin - 1) // 2
        colour = self._colour(label)
        self._text(self._fit(label, label_width - line // 4), x, y, line, _WHITE)
        cv2.rectangle(self.image, (left, top), (left + length, top + thick - 1), (70, 66, 64), -1)
        for value, first, tall in ((window, top, thick), (now, top + thick + 1, thin)):
            filled = round(length * min(max(value, 0.0), 1.0))
            if filled:
                cv2.rectangle(self.image, (left, first), (left + filled, first + tall - 1), colour, -1)
        number = f"{100 * window:.0f}%"
        self._text(number, x + wide - self._width(number, 0.85), y, line, _GREY, 0.85)

    def _gates(self, gates: Sequence[float], x: int, y: int, wide: int, tall: int) -> None:
        edges = np.linspace(0, wide, len(gates) + 1).round().astype(int)
        for gate, left, right in zip(gates, edges[:-1], edges[1:], strict=True):
            shade = round(60 + 185 * min(max(gate, 0.0), 1.0))
            cv2.rectangle(self.image, (x + int(left), y), (x + int(right) - (2 if right - left > 3 else 1),
                                                           y + max(1, tall) - 1), (shade, shade, shade), -1)

    def _panel(self, x: int, y: int, wide: int, tall: int, strength: float = 0.72) -> None:
        area = self.image[max(y, 0):y + tall, max(x, 0):x + wide]
        if area.size:
            cv2.addWeighted(area, 1 - strength, np.full_like(area, _DARK), strength, 0, dst=area)

    def _text(self, text: str, x: int, y: int, tall: int, colour: Colour, size: float = 1.0) -> None:
        """Text whose line begins at the top left corner (x, y) and is `tall` pixels high."""
        scale, thickness = self._scale(size)
        baseline = y + round((tall + 0.58 * size * self.line) / 2)
        cv2.putText(self.image, text, (x, baseline), _FONT, scale, colour, thickness, cv2.LINE_AA)

    def _width(self, text: str, size: float = 1.0) -> int:
        scale, thickness = self._scale(size)
        return int(cv2.getTextSize(text, _FONT, scale, thickness)[0][0])

    def _fit(self, text: str, wide: int, size: float = 1.0) -> str:
        """The text, shortened until it fits."""
        if self._width(text, size) <= wide:
            return text
        while text and self._width(text + "..", size) > wide:
            text = text[:-1]
        return text + ".."

    def _scale(self, size: float) -> tuple[float, int]:
        tall = 0.58 * size * self.line  # of a capital letter, which has 21 units in this font
        return tall / 21, max(1, round(tall / 10))

    def _colour(self, label: str) -> Colour:
        return self.state.colour(label)[::-1]
