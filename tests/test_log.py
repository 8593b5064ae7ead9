"""The event log: no logged event is lost, and what is asked for is found and exported."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from records import GAP, PREDICTION, SUMMARY, disk_of, event, grey

from engines import datasets
from engines.errors import SinkError, UsageError
from stream.commands.cli import main
from stream.frame import Event, Frame
from stream.sinks.base import OutputClosed
from stream.sinks.export import WRITERS, View, export, write_elan, write_vtt
from stream.sinks.export_dataset import find_narrations, write_epic
from stream.sinks.log import EventLog, LoggedEvent, Run, count_events, read_events, read_runs
from stream.sinks.times import parse_time

# ---- event log -------------------------------------------------------------------------------------------------

def open_log(path: Path) -> EventLog:
    return EventLog(path, "gesture", "clip.mp4")


def events(path: Path, **chosen: Any) -> list[Event]:
    return [each.event for each in read_events(path, **chosen)]


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
    assert count_events(path) == {"0": {"left": 2, "up": 1}}


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
    assert [(run.model, run.source, run.events) for run in read_runs(path)] == [("gesture", "0", 1),
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
    for use in (open_log, events, read_runs):
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

RUN = Run(1, 0.0, "gesture", "clip.mp4", 0.0, 1)


@pytest.mark.usefixtures("in_utc")
@pytest.mark.parametrize(("form", "wanted"), [
    ("csv", 'camera,head,label,started_at,ended_at,score,id,run,source,model,digest,zone\n'
            '0,gesture,"a, b",1.2,2.1,0.93,{id}-1-1,1,clip.mp4,gesture,,+00:00\n'),
    ("jsonl", json.dumps({**event("a, b").as_json(), "id": "{id}-1-1", "run": 1, "source": "clip.mp4",
                          "model": "gesture", "digest": "", "zone": "+00:00"}, separators=(",", ":")) + "\n"),
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
    WRITERS["table"]([LoggedEvent("a-1", RUN, event("[red]left")),
                      LoggedEvent("a-2", RUN, event("up", 3661, 3662.5))], out, View())
    assert "[red]left" in out.getvalue()
    assert "3661.00" in out.getvalue()


@pytest.mark.usefixtures("in_utc")
def test_the_table_shows_live_events_by_the_wall_clock() -> None:
    out, at = io.StringIO(), 1_795_962_306.71
    WRITERS["table"]([LoggedEvent("a-1", RUN, event("left", at, at + 1.3))], out, View())
    assert out.getvalue().splitlines()[1].split() == [
        "0", "gesture", "left", "2026-11-29", "14:25:06+00:00", "14:25:08", "1.30", "s", "0.93"]


def test_subtitles_count_from_the_first_frame_and_are_escaped() -> None:
    out = io.StringIO()
    live = RUN._replace(origin=1_700_000_000)
    write_vtt([LoggedEvent("a-1", live, event("a <b> & c", 1_700_003_661.5, 1_700_003_662))], out)
    assert out.getvalue() == "WEBVTT\n\n01:01:01.500 --> 01:01:02.000\na &lt;b&gt; &amp; c\n"


def test_elan_has_a_tier_for_each_camera_and_its_times_in_the_video() -> None:
    out = io.StringIO()
    run = RUN._replace(origin=100.0)
    write_elan([LoggedEvent("a-1", run, event("left & up", 101.5, 102)),
                LoggedEvent("a-2", run, event("up", 103, 104, camera="b")),
                LoggedEvent("a-3", run, event("up", 105, 106))], out)
    document = ElementTree.fromstring(out.getvalue())
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in document.iter("TIME_SLOT")}
    said = {tier.get("TIER_ID"): [(slots[one.get("TIME_SLOT_REF1")], slots[one.get("TIME_SLOT_REF2")],
                                   one.findtext("ANNOTATION_VALUE")) for one in tier.iter("ALIGNABLE_ANNOTATION")]
            for tier in document.iter("TIER")}
    assert said == {"0 gesture": [("1500", "2000", "left & up"), ("5000", "6000", "up")],
                    "b gesture": [("3000", "4000", "up")]}


def test_events_of_one_head_that_overlap_are_all_there() -> None:
    found = [LoggedEvent(f"a-{k}", RUN, event(label, start, end)) for k, (label, start, end) in
             enumerate([("hold", 0, 4), ("cut", 1, 2), ("look", 1, 3), ("wash", 2, 3), ("hold", 4, 5)])]
    tiers, cues, rows = io.StringIO(), io.StringIO(), io.StringIO()
    write_elan(found, tiers)
    document = ElementTree.fromstring(tiers.getvalue())
    assert {tier.get("TIER_ID"): [one.text for one in tier.iter("ANNOTATION_VALUE")] for tier in
            document.iter("TIER")} == {"0 gesture": ["hold", "hold"], "0 gesture 2": ["cut", "wash"],
                                       "0 gesture 3": ["look"]}
    write_vtt(found, cues)
    assert cues.getvalue().count(" --> ") == 5
    assert "00:00:01.000 --> 00:00:03.000\nlook" in cues.getvalue()
    WRITERS["csv"](found, rows, View())
    assert len(rows.getvalue().splitlines()) == 6


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
        assert [one.media.path.stem for one in segments] == [f"{log.identity}-1-1_cell-3_left",
                                                             f"{log.identity}-1-2_0_up"]


def test_verbs_find_their_nouns(tmp_path: Path) -> None:
    said = [("verb", "cut", 1, 3, "a"), ("noun", "bread", 0, 1.5, "a"), ("noun", "knife", 1, 3, "a"),
            ("noun", "cup", 1, 3, "b"), ("verb", "wash", 5, 6, "a"), ("action", "cut knife", 1, 3, "a"),
            ("verb", "hold", 0, 1.5, "a")]
    found = [LoggedEvent(f"a-{k}", RUN, event(label, start, end, camera=camera, head=head))
             for k, (head, label, start, end, camera) in enumerate(said)]
    write_epic(tmp_path, find_narrations(found)[0])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "EPIC_100_train.csv").read_text())))
    assert [(row["verb"], row["noun"]) for row in rows] == [("cut", "knife"), ("wash", "unknown"), ("hold", "bread")]


@pytest.mark.parametrize(("text", "seconds"), [("12.5", 12.5), ("2026-01-31T14:05:00+00:00", 1769868300.0)])
def test_a_moment_is_seconds_or_a_time(text: str, seconds: float) -> None:
    assert parse_time(text, now=0.0) == seconds


def test_an_export_whose_reader_left_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with open_log(path) as log:
        log.write(None, [event()])
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as out, pytest.raises(OutputClosed):
        export(path, out, "csv")
