"""Laws of the sinks: what was recognised is on disk, readable by others, and faults are said in one clear line."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from engines.errors import SinkError, UsageError
from engines.training import datasets
from stream.cli import _moment, main
from stream.frame import Event, Frame, Gap, HeadScores, Prediction, Record, Summary
from stream.overlay import OverlayState, draw, label_colour
from stream.sinks.base import OutputClosed, Sink
from stream.sinks.datasets import write_epic
from stream.sinks.export import WRITERS, export, write_elan, write_vtt
from stream.sinks.jsonl import JsonLines
from stream.sinks.log import EventLog, Logged, Run, events, numbers, runs
from stream.sinks.terminal import REDRAW_S, TerminalView
from stream.sinks.video import MAX_HOLD_S, MAX_SIDE, RESERVE_BYTES, AnnotatedVideo

PREDICTION = Prediction("0", 12, 1.6, True, {"gesture": HeadScores((("left", 0.91), ("up", 0.04)), (("left", 0.88),))},
                        (0.1, 0.7, 0.9), {"total": 7.9, "engine": 6.2}, 0, 0)
GAP = Gap("0", 7.5, 3.2, "reset")
SUMMARY = Summary("0", 350, 120, 4, 0, 101.2, {"p50": 6.9, "p95": 8.1, "p99": 9.0})


def event(label: str = "left", start: float = 1.2, end: float = 2.1, *, camera: str = "0", head: str = "gesture",
          open: bool = False) -> Event:
    return Event(camera, head, label, start, end, 0.93, open)


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size_bytes`, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- every sink ------------------------------------------------------------------------------------------------

SINKS: dict[str, Callable[[Path], Sink]] = {
    "out.jsonl": JsonLines,
    "out.db": lambda path: EventLog(path, "gesture", "sim://gestures"),
    "out.mp4": AnnotatedVideo,
}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("case", ["folder", "below a file", "no such folder"])
def test_an_output_that_cannot_be_written_is_refused_when_built(tmp_path: Path, name: str, case: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / name).mkdir()
    path = {"folder": tmp_path / name, "below a file": tmp_path / "file" / name,
            "no such folder": tmp_path / "absent" / name}[case]
    with pytest.raises(SinkError) as refusal:
        SINKS[name](path)
    assert str(path) in refusal.value.got
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", SINKS)
def test_closing_twice_and_writing_after_close_do_nothing(tmp_path: Path, name: str) -> None:
    sink = SINKS[name](tmp_path / name)
    sink.close()
    sink.close()
    sink.write(None, [event()])


# ---- JSON lines ------------------------------------------------------------------------------------------------

EXAMPLES: list[tuple[Record, dict[str, Any]]] = [
    (PREDICTION, {"type": "prediction", "camera": "0", "frame": 12, "captured_at": 1.6, "warm": True,
                  "heads": {"gesture": {"now": [["left", 0.91], ["up", 0.04]], "window": [["left", 0.88]]}},
                  "clips": [0.1, 0.7, 0.9], "latency_ms": {"total": 7.9, "engine": 6.2}, "dropped": 0, "held": 0}),
    (event(), {"type": "event", "camera": "0", "head": "gesture", "label": "left", "started_at": 1.2,
               "ended_at": 2.1, "score": 0.93, "open": False}),
    (GAP, {"type": "gap", "camera": "0", "at": 7.5, "seconds": 3.2, "action": "reset"}),
    (SUMMARY, {"type": "summary", "camera": "0", "frames": 350, "predictions": 120, "events": 4, "dropped": 0,
               "fps": 101.2, "latency_ms": {"p50": 6.9, "p95": 8.1, "p99": 9.0}}),
]


def test_each_record_is_one_line_of_the_public_format(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.write(None, [record for record, _ in EXAMPLES])
        written = path.read_text()  # before close: a line can be read as soon as it is written
    assert [json.loads(line) for line in written.splitlines()] == [wanted for _, wanted in EXAMPLES]
    assert [list(json.loads(line)) for line in written.splitlines()] == [list(wanted) for _, wanted in EXAMPLES]


def test_dash_is_standard_output_and_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines("-") as sink:
        sink.write(None, [GAP])
    print("more")
    assert capsys.readouterr().out.splitlines() == [json.dumps(GAP.as_json(), separators=(",", ":")), "more"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.write(None, [GAP])
        with pytest.raises(SinkError, match="finite"):
            sink.write(None, [Gap("0", 1.0, float("nan"), "reset")])
    assert len(path.read_text().splitlines()) == 1


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    program = ("from stream.frame import Gap; from stream.sinks.base import OutputClosed\n"
               "from stream.sinks.jsonl import JsonLines\n"
               "sink = JsonLines('-')\n"
               "try:\n"
               "    while True: sink.write(None, [Gap('0', 1.0, 2.0, 'reset')])\n"
               "except OutputClosed as end:\n"
               "    sink.close(); raise SystemExit(end.exit_code)\n")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.wait(timeout=60) == 0
        assert writer.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_json_lines_on_a_full_disk_is_a_sink_error() -> None:
    with JsonLines("/dev/full") as sink, pytest.raises(SinkError, match="/dev/full"):
        sink.write(None, [GAP])


# ---- event log -------------------------------------------------------------------------------------------------

def open_log(path: Path) -> EventLog:
    return EventLog(path, "gesture", "clip.mp4")


def test_only_closed_events_are_logged_and_each_is_seen_by_others_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with open_log(path) as log:
        log.write(None, [PREDICTION, event(open=True)])
        assert events(path) == []
        log.write(None, [event(), GAP, SUMMARY])
        assert events(path) == [event()]
    assert events(path) == [event()]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT camera, at, seconds, action FROM gaps").fetchall() == [("0", 7.5, 3.2, "reset")]
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_newest_are_found_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    kept = [event("left", 5, 6), event("up", 1, 2), event("left", 7, 8)]
    with open_log(path) as log:
        log.write(None, kept)
    assert [events(path, newest=count) for count in (0, 2, 9)] == [[], kept[1:], [kept[1], kept[0], kept[2]]]
    assert events(path, newest=1, label="up") == [kept[1]]
    assert numbers(path) == {"0": {"left": 2, "up": 1}}


def test_events_survive_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    program = ("import os, sys; from stream.frame import Event; from stream.sinks.log import EventLog\n"
               "log = EventLog(sys.argv[1], 'gesture', '0')\n"
               "log.write(None, [Event('0', 'gesture', 'left', 1.2, 2.1, 0.93, False)])\n"
               "os._exit(9)\n")
    assert subprocess.run([sys.executable, "-c", program, str(path)], timeout=60).returncode == 9
    with open_log(path) as log:
        log.write(None, [event("up", 3, 4)])
    assert events(path) == [event(), event("up", 3, 4)]
    assert [(run.model, run.source, run.events) for run in runs(path)] == [("gesture", "0", 1),
                                                                           ("gesture", "clip.mp4", 1)]


def fill_pages(log: EventLog) -> None:
    assert log._db is not None
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages + 2}")


def log_until_full(log: EventLog, kept: list[Event]) -> None:
    for start in range(10_000):
        item = event("left" * 20, start, start + 0.5)
        log.write(None, [item])
        kept.append(item)


@pytest.mark.parametrize("how", ["database full", "disk full"])
def test_a_full_disk_costs_no_logged_event(tmp_path: Path, how: str) -> None:
    path = tmp_path / "log.db"
    kept: list[Event] = []
    with open_log(path) as log:
        if how == "database full":
            fill_pages(log)
        with disk_of(200_000 if how == "disk full" else 1 << 30), pytest.raises(SinkError) as refusal:
            log_until_full(log, kept)
    assert str(path) in refusal.value.got
    assert len(kept) > 10
    assert events(path) == kept
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")


def newer_log(path: Path) -> None:
    open_log(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.write_bytes(b"holiday pictures " * 200), "not a database"),
    (other_database, "another program's database"), (newer_log, "version 99")])
def test_a_file_that_is_no_event_log_is_refused_and_not_touched(tmp_path: Path, make: Callable[[Path], object],
                                                                words: str) -> None:
    path = tmp_path / "log.db"
    make(path)
    before = path.read_bytes()
    for use in (open_log, events, runs):
        with pytest.raises(SinkError, match=words) as refusal:
            use(path)
        assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


def test_a_locked_log_is_a_sink_error_and_writing_goes_on_afterwards(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.sinks.log.BUSY_TIMEOUT_S", 0.0)
    path = tmp_path / "log.db"
    with open_log(path) as log, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkError, match="locked"):
            log.write(None, [event()])
        with pytest.raises(SinkError, match="locked"):
            open_log(path)
        other.execute("COMMIT")
        log.write(None, [event()])
    assert events(path) == [event()]


LOGGED = [event("left", 1, 2), event("up", 3, 4, camera="b"), event("left", 5, 6)]


@pytest.mark.parametrize(("chosen", "wanted"), [
    ({}, [0, 1, 2]), ({"label": "left"}, [0, 2]), ({"camera": "b"}, [1]), ({"since": 3.5}, [1, 2]),
    ({"until": 3.5}, [0, 1]), ({"since": 2.5, "until": 2.9}, []), ({"run": 1}, [0, 1]), ({"run": -1}, [2]),
    ({"label": "left", "run": 1}, [0]), ({"head": "gesture"}, [0, 1, 2]), ({"head": "verb"}, []),
    ({"min_score": 0.93}, [0, 1, 2]), ({"min_score": 0.94}, [])])
def test_events_are_chosen(tmp_path: Path, chosen: dict[str, Any], wanted: list[int]) -> None:
    path = tmp_path / "log.db"
    with open_log(path) as log:
        log.write(None, LOGGED[:2])
    with open_log(path) as log:
        log.write(None, LOGGED[2:])
    assert events(path, **chosen) == [LOGGED[index] for index in wanted]


def test_asking_for_what_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with pytest.raises(UsageError, match="no event log"):
        events(path)
    assert not path.exists()
    open_log(path).close()
    with pytest.raises(UsageError, match="run 7"):
        events(path, run=7)
    with pytest.raises(UsageError, match="csv"):
        export(path, io.StringIO(), "xml")


# ---- exports ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("form", "wanted"), [
    ("csv", 'camera,head,label,started_at,ended_at,score,id\n0,gesture,"a, b",1.2,2.1,0.93,{id}-1\n'),
    ("jsonl", json.dumps({**event("a, b").as_json(), "id": "{id}-1"}, separators=(",", ":")) + "\n"),
    ("vtt", "WEBVTT\n\n00:00:01.200 --> 00:00:02.100\na, b\n")])
def test_export_formats(tmp_path: Path, form: str, wanted: str) -> None:
    path = tmp_path / "log.db"
    with open_log(path) as log:
        log.write(Frame(grey(), 0.0, 0, "0"), [event("a, b")])
    out = io.StringIO()
    export(path, out, form)
    assert out.getvalue() == wanted.replace("{id}", log.identity)


def test_the_table_shows_every_event_as_it_is() -> None:
    out = io.StringIO()
    WRITERS["table"]([Logged("a-1", 1, event("[red]left")), Logged("a-2", 1, event("up", 3661, 3662.5))], out)
    assert "[red]left" in out.getvalue()
    assert "3661.00" in out.getvalue()


def test_subtitles_count_from_the_first_frame_and_are_escaped() -> None:
    out = io.StringIO()
    write_vtt([Logged("a-1", 1, event("a <b> & c", 1_700_003_661.5, 1_700_003_662))], out, origin_s=1_700_000_000)
    assert out.getvalue() == "WEBVTT\n\n01:01:01.500 --> 01:01:02.000\na &lt;b&gt; &amp; c\n"


def test_elan_has_a_tier_for_each_camera_and_its_times_in_the_video() -> None:
    out = io.StringIO()
    write_elan([Logged("a-1", 1, event("left & up", 101.5, 102)), Logged("a-2", 1, event("up", 103, 104, camera="b")),
                Logged("a-3", 1, event("up", 105, 106))], out, origin_s=100)
    document = ElementTree.fromstring(out.getvalue())
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in document.iter("TIME_SLOT")}
    said = {tier.get("TIER_ID"): [(slots[one.get("TIME_SLOT_REF1")], slots[one.get("TIME_SLOT_REF2")],
                                   one.findtext("ANNOTATION_VALUE")) for one in tier.iter("ALIGNABLE_ANNOTATION")]
            for tier in document.iter("TIER")}
    assert said == {"0 gesture": [("1500", "2000", "left & up"), ("5000", "6000", "up")],
                    "b gesture": [("3000", "4000", "up")]}


@pytest.mark.parametrize("form", ["epic", "ssv2"])
def test_events_become_a_dataset_that_can_be_read(form: str, tmp_path: Path) -> None:
    path, out = tmp_path / "log.db", tmp_path / "set"
    with open_log(path) as log:
        log.write(Frame(grey(), 100.0, 0, "0"), [event("left", 101, 102, camera="cell 3"), event("up", 103.25, 104)])
    assert main(["events", str(path), "--format", form]) == 2
    assert main(["events", str(path), "--format", form, "--out", str(out)]) == 0
    data = datasets.open_dataset(out)
    segments = data.splits["train"]
    if form == "epic":
        assert [(one.labels["verb"], one.labels["noun"], one.start_s, one.stop_s) for one in segments] == [
            ("left", "gesture", 1.0, 2.0), ("up", "gesture", 3.25, 4.0)]
        assert [one.media.path.stem for one in segments] == ["cell-3_01", "0_01"]
    else:
        assert [one.labels["action"] for one in segments] == ["left", "up"]
        assert [one.media.path.stem for one in segments] == [f"{log.identity}-1_cell-3_left", f"{log.identity}-2_0_up"]


def test_verbs_find_their_nouns(tmp_path: Path) -> None:
    said = [("verb", "cut", 1, 3, "a"), ("noun", "bread", 0, 1.5, "a"), ("noun", "knife", 1, 3, "a"),
            ("noun", "cup", 1, 3, "b"), ("verb", "wash", 5, 6, "a")]
    found = [Logged(f"a-{k}", 1, event(label, start, end, camera=camera, head=head))
             for k, (head, label, start, end, camera) in enumerate(said)]
    write_epic(tmp_path, found, [Run(1, 0.0, "m", "s", None, 5)])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "EPIC_100_train.csv").read_text())))
    assert [(row["verb"], row["noun"]) for row in rows] == [("cut", "knife"), ("wash", "unknown")]


@pytest.mark.parametrize(("text", "seconds"), [("12.5", 12.5), ("2026-01-31T14:05:00+00:00", 1769868300.0)])
def test_a_moment_is_seconds_or_a_time(text: str, seconds: float) -> None:
    assert _moment(text) == seconds


def test_an_export_whose_reader_left_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with open_log(path) as log:
        log.write(None, [event()])
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as out, pytest.raises(OutputClosed):
        export(path, out, "csv")


# ---- overlay ---------------------------------------------------------------------------------------------------

def grey(height: int = 120, width: int = 160, value: int = 128) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def frame(captured_at: float, image: NDArray[np.uint8] | None = None) -> Frame:
    return Frame(grey() if image is None else image, captured_at, 0, "0")


@pytest.mark.parametrize("size_hw", [(1, 1), (59, 80), (60, 80), (120, 160), (480, 640), (854, 480), (64, 1920),
                                     (1080, 1920)])
def test_overlay_fits_any_size_and_leaves_the_image_alone(size_hw: tuple[int, int]) -> None:
    image = grey(*size_hw)
    state = OverlayState()
    long = HeadScores((("a label that is much too long for any bar", 0.5),), (("a label that is much too long", 2.0),))
    state.update([Prediction("0", 1, 2.0, False, {"verb": long, "noun": long}, (0.0, float(1), 0.5) * 20, {}, 5, 5),
                  event("a label that is much too long for any banner", open=True), event("up")], frame(2.0))
    drawn = draw(image, state)
    assert drawn.shape == image.shape
    assert (image == 128).all()
    assert (drawn != 128).any() == (size_hw[0] >= 60 and size_hw[1] >= 80)


def test_overlay_shows_bars_by_score_and_the_open_event_in_the_labels_colour() -> None:
    def pixels(score: float, *records: Record) -> int:
        state = OverlayState(background="background")
        scores = HeadScores((("left", score),), (("left", score),))
        state.update([Prediction("0", 1, 2.0, True, {"gesture": scores}, (), {}, 0, 0), *records], frame(2.0))
        colour = np.array(label_colour("left")[::-1])
        return int((draw(grey(480, 640), state) == colour).all(axis=2).sum())

    none, half, full, opened = pixels(0.0), pixels(0.5), pixels(1.0), pixels(1.0, event(open=True))
    assert none == 0
    assert half == pytest.approx(full / 2, rel=0.05)
    assert opened > full
    assert pixels(1.0, event(open=True), event()) < opened  # it has ended: no banner, only a dot in the list


def test_state_counts_times_from_the_first_frame() -> None:
    state = OverlayState()
    state.update([], frame(1_700_000_000.0))
    state.update([event(start=1_700_000_061.26)], frame(1_700_000_100.0))
    assert state.shown_time(state.closed[0].started_at) == "1:01.3"
    assert state.shown_time(state.captured_at) == "1:40.0"


# ---- annotated video -------------------------------------------------------------------------------------------

def read_back(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    reader = cv2.VideoCapture(str(path))
    assert reader.isOpened()
    images: list[NDArray[np.uint8]] = []
    while True:
        found, image = reader.read()
        if not found:
            break
        images.append(np.asarray(image, dtype=np.uint8))
    rate = float(reader.get(cv2.CAP_PROP_FPS))
    reader.release()
    return images, rate


def jittered(rate: float) -> list[float]:
    late = np.random.default_rng(0).uniform(-0.4, 0.4, 60)
    return [(index + float(late[index])) / rate for index in range(60)]


TIMINGS: dict[str, tuple[list[float], float | None, float]] = {
    # capture times, the source's stated rate, the rate of the video
    "constant": ([i / 25 for i in range(50)], 25.0, 25.0),
    "ntsc": ([i * 1001 / 30000 for i in range(90)], 30000 / 1001, 29.97),
    "live clock": ([1_700_000_000 + i / 30 for i in range(60)], 30.0, 30.0),
    "jitter": (jittered(30), 30.0, 30.0),
    "slower than stated": ([i / 7 for i in range(14)], 30.0, 30.0),
    "faster than stated": ([i / 100 for i in range(200)], 30.0, 30.0),
    "variable": ([0, 0.1, 0.15, 0.9, 1.0, 3.2, 3.21, 3.22], 30.0, 30.0),
    "no rate": ([i / 15 for i in range(30)], None, 30.0),
    "zero rate": ([i / 15 for i in range(30)], 0.0, 30.0),
    "absurd rate": ([i / 15 for i in range(30)], 90_000.0, 30.0),
    "not a rate": ([i / 15 for i in range(30)], float("nan"), 30.0),
    "one frame": ([7.0], 30.0, 30.0),
}


@pytest.mark.parametrize("case", TIMINGS)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_the_video_lasts_as_long_as_the_capture(tmp_path: Path, case: str, suffix: str) -> None:
    times, stated, rate = TIMINGS[case]
    path = tmp_path / f"out{suffix}"
    with AnnotatedVideo(path, stated) as video:
        for captured_at in times:
            video.write(frame(captured_at), [])
            video.write(None, [])
    images, header = read_back(path)
    assert header == pytest.approx(rate, abs=1e-3)
    assert len(images) / rate == pytest.approx(times[-1] - times[0] + 1 / rate, abs=1 / rate)
    assert sorted(tmp_path.iterdir()) == [path]


def test_each_image_is_shown_from_its_capture_until_the_next(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        for captured_at, value in ((0.0, 40), (0.5, 120), (0.52, 250), (0.8, 200)):
            video.write(frame(captured_at, grey(value=value)), [])
    images, _ = read_back(tmp_path / "out.avi")
    assert [round(float(image[40:80].mean()) / 40) for image in images] == [1] * 5 + [3] * 3 + [5]


@pytest.mark.parametrize(("times", "seconds"), [([0, 0.1, 86_400, 86_400.1], MAX_HOLD_S + 0.2),
                                                ([50, 50.1, 3, 3.1], 0.3)])
def test_long_pauses_are_cut_and_time_running_backwards_goes_on(tmp_path: Path, times: list[float],
                                                               seconds: float) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        for captured_at in times:
            video.write(frame(captured_at), [])
    images, rate = read_back(tmp_path / "out.avi")
    assert len(images) / rate == pytest.approx(seconds + 1 / rate, abs=1 / rate)


@pytest.mark.parametrize(("first_hw", "wanted_hw"), [
    ((120, 160), (120, 160)), ((121, 161), (120, 160)), ((1, 1), (16, 16)), ((6000, 8000), (1440, MAX_SIDE)),
    ((4000, 1000), (MAX_SIDE, 480))])
def test_the_first_image_sets_an_even_bounded_size(tmp_path: Path, first_hw: tuple[int, int],
                                                   wanted_hw: tuple[int, int]) -> None:
    with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
        for index, size_hw in enumerate((first_hw, (50, 300), (300, 51))):
            video.write(frame(index / 10, grey(*size_hw, value=200)), [])
    images, _ = read_back(tmp_path / "out.mp4")
    assert [image.shape[:2] for image in images] == [wanted_hw] * 3


def test_an_image_of_another_shape_is_fitted_in_with_black_borders(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        video.write(frame(0.0, grey(50, 50, 200)), [])
        video.write(frame(0.1, grey(50, 100, 200)), [])
    second = read_back(tmp_path / "out.avi")[0][1].astype(int)
    assert second[:10].max() < 30
    assert second[-10:].max() < 30
    assert abs(second[17:33] - 200).max() < 30


def test_no_frame_no_video_and_an_older_video_is_kept_until_the_new_one_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    AnnotatedVideo(path).close()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]
    with AnnotatedVideo(path) as video:
        video.write(frame(0.0), [])
        assert path.read_bytes() == b"older"
    assert len(read_back(path)[0]) == 1


def test_the_video_is_finished_when_the_run_is_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
            video.write(frame(0.0), [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_back(tmp_path / "out.mp4")[0]) == 1


def test_a_kind_of_video_we_cannot_write_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"out\.gif.*\.mp4"):
        AnnotatedVideo(tmp_path / "out.gif")


def test_a_disk_that_fills_up_leaves_a_video_that_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
        video.write(frame(0.0), [])
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=RESERVE_BYTES - 1))
        with pytest.raises(SinkError, match="MB free"):
            video.write(frame(0.1), [])
    assert len(read_back(tmp_path / "out.mp4")[0]) == 1


def test_a_video_that_could_not_be_written_is_never_taken_for_a_good_one(tmp_path: Path,
                                                                         capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)

    def write() -> None:
        with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
            for index in range(20):
                video.write(frame(index / 10, noise), [])

    with disk_of(5_000), pytest.raises(SinkError, match="failed: File too large"):
        write()
    assert not (tmp_path / "out.mp4").exists()
    capfd.readouterr()  # what the codecs say about it


# ---- terminal --------------------------------------------------------------------------------------------------

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
    shown.print(view.picture())
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
    shown.print(view.picture())
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
    lines = view.console.render_lines(view.picture(), view.console.options.update(height=None))
    assert len(lines) < height
    assert {sum(part.cell_length for part in line) for line in lines} == {width}


def test_without_a_terminal_there_is_one_plain_line_for_each_closed_event() -> None:
    out = io.StringIO()
    with TerminalView("clip.mp4", "gesture", console=Console(file=out)) as view:
        view.write(frame(0.0), [PREDICTION, event(open=True)])
        view.write(frame(0.1), [event(), GAP])
    assert out.getvalue() == ("1.20 - 2.10 s  left  0.93  (gesture, camera 0)\n"
                              "7.50 s  gap of 3.20 s: reset  (camera 0)\n")


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
