"""The live view: what the terminal shows, whatever it can show."""

from __future__ import annotations

import io
import os

import pytest
from records import GAP, PREDICTION, SUMMARY, event, frame
from rich.console import Console

from stream.frame import Gap, HeadScores, Prediction, Summary
from stream.sinks.base import OutputClosed
from stream.sinks.terminal import REDRAW_S, TerminalView


def live_view(width: int = 80, height: int = 24) -> tuple[TerminalView, io.StringIO, list[float]]:
    """A view on a pretended terminal, what it wrote, and its clock."""
    now, out = [100.0], io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, legacy_windows=False,
                      color_system="truecolor")
    return TerminalView("sim://gestures", "gesture, openvino f32", "background", console, lambda: now[0]), out, now


def test_the_live_view_redraws_no_more_often_than_its_clock_allows() -> None:
    view, out, now = live_view()
    drawn = []
    for index in range(100):
        before = out.tell()
        view.write(frame(index / 100), [PREDICTION])
        drawn.append(out.tell() > before)
        now[0] += REDRAW_S / 7.5
    view.close()
    assert [index for index, redrawn in enumerate(drawn) if redrawn] == list(range(0, 100, 8))


def test_the_live_view_shows_rate_events_and_what_is_open() -> None:
    view, out, now = live_view(100)
    view.write(frame(0.0), [event("star", 3.0, 4.5)])
    now[0] += 1.0
    for index in range(20):
        view.write(frame(5.0 + index / 20), [PREDICTION, event(start=4.0, open=True)] if index == 0 else [])
    now[0] += 1.0
    view.write(frame(6.0), [GAP])
    view.close()
    shown = Console(file=io.StringIO(), width=100, record=True)
    shown.print(view.render())
    text = shown.export_text()
    for words in ("sim://gestures", "gesture, openvino f32", " left  2.0 s", " 88%", "events 1", "0:03.0 - 0:04.5",
                  "0.93", "7.9 ms", "gap of 3.2 s"):
        assert words in text
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_the_shown_rate_is_frames_by_the_clock() -> None:
    view, _, now = live_view()
    for index in range(51):
        view.write(frame(index / 25), [])
        now[0] += 1 / 25
    view.close()
    shown = Console(file=io.StringIO(), width=80, record=True)
    shown.print(view.render())
    assert "25 frames/s" in shown.export_text()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (60, 24), (200, 60)])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_live_view_fits_the_terminal(width: int, height: int, heads: int) -> None:
    view, _, _ = live_view(width, height)
    ranked = tuple((f"a label that is far too long for its place {n}", 0.2) for n in range(5))
    view.write(frame(0.0), [Prediction("0", 1, 2.0, True, dict.fromkeys(["verb", "noun"][:heads],
                                                                        HeadScores(ranked, ranked)), (), {}, 0, 0)])
    view.write(frame(1.0), [event("x" * 200, open=True), GAP, *(event("y" * 200, n, n + 1) for n in range(30))])
    view.close()
    lines = view.console.render_lines(view.render(), view.console.options.update(height=None))
    assert len(lines) < height
    assert {sum(part.cell_length for part in line) for line in lines} == {width}


def test_without_a_terminal_there_is_one_plain_line_for_each_closed_event() -> None:
    out = io.StringIO()
    with TerminalView("clip.mp4", "gesture", console=Console(file=out)) as view:
        view.write(frame(0.0), [PREDICTION, event(open=True)])
        view.write(frame(0.1), [event(), GAP])
    assert out.getvalue() == ("0:01.2 - 0:02.1  left  0.93  (gesture, camera 0)\n"
                              "0:07.5  gap of 3.2 s: reset  (camera 0)\n")


@pytest.mark.usefixtures("in_utc")
@pytest.mark.parametrize("terminal", [True, False])
def test_times_of_live_sources_are_the_wall_clocks(terminal: bool) -> None:
    out, start = io.StringIO(), 1_795_962_306.71  # 2026-11-29 14:25:06 UTC
    console = Console(file=out, width=100, height=24, force_terminal=terminal, color_system=None, legacy_windows=False)
    with TerminalView("0", "gesture", console=console, live=True) as view:
        view.write(frame(start - 90), [])
        view.write(frame(start + 2), [event(start=start, end=start + 1.3), Gap("0", start + 2, 3.2, "reset")])
        view.write(None, [event(start=start, end=start + 2, open=False)])
    text = out.getvalue()
    assert "17959" not in text
    assert "14:25:06   1.3 s" in text
    if not terminal:
        assert text.splitlines()[:2] == ["14:25:06   1.3 s  left  0.93  (gesture, camera 0)",
                                         "14:25:08  gap of 3.2 s: reset  (camera 0)"]


def test_times_of_a_replay_count_from_its_first_frame() -> None:
    out = io.StringIO()
    with TerminalView("desk.frames", "gesture", console=Console(file=out)) as view:
        view.write(frame(1_795_962_300.0), [])
        view.write(frame(1_795_962_366.0), [event(start=1_795_962_361.25, end=1_795_962_362.5)])
    assert out.getvalue().startswith("1:01.2 - 1:02.5  left")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_summary_ends_the_view_with_every_total_in_80_columns(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    with TerminalView("0", "gesture", console=console) as view:
        view.write(frame(0.0), [PREDICTION])
        view.write(None, [SUMMARY])
        after = out.getvalue()
    assert out.getvalue() == after
    camera, names, totals = after.splitlines()[-3:]
    assert camera.endswith("0")
    assert " ".join(names.split()) == "frames predictions events dropped frames/s p50 ms p95 ms p99 ms"
    assert totals.split() == ["350", "120", "4", "0", "101.2", "6.9", "8.1", "9.0"]


def test_names_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    with TerminalView("\x1b]0;camera", "\x1b]0;engine", console=console) as view:
        view.write(frame(0.0), [event("[red]\x1b]0;label"), event("\x1b]0;label", open=True)])
        view.write(None, [Summary("\x1b]0;camera", 1, 1, 1, 0, 1.0)])
    plain = io.StringIO()
    TerminalView("", "", console=Console(file=plain)).write(None, [event("\x1b]0;label\n")])
    assert "\x1b]" not in out.getvalue() + plain.getvalue()
    assert "[red]" in out.getvalue()
    assert plain.getvalue().count("\n") == 1


def test_a_terminal_without_unicode_shows_what_it_can() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80, force_terminal=True, color_system=None,
                      legacy_windows=False)
    with TerminalView("käse", "gesture", console=console) as view:
        view.write(frame(0.0), [PREDICTION, event("käse " * 20)])
    assert b"####" in raw.getvalue()


def test_a_pipe_whose_reader_left_ends_the_view_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        view = TerminalView("0", "gesture", console=Console(file=out))
        with pytest.raises(OutputClosed):
            view.write(None, [event()])
        view.close()
