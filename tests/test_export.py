"""What `gatestream events` lists: runs, logs, times, videos; nothing that was asked for is left out silently."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from records import GAP, event, grey

from engines.errors import UsageError
from stream.commands.cli import main
from stream.frame import Event, Frame, Record
from stream.sinks.log import EventLog, clip_name, read_events
from stream.sinks.retention import compact
from stream.sinks.segments import SegmentWriter
from stream.sinks.times import format_time, parse_time

NOON = 1_795_953_600.0  # 2026-11-29T12:00:00Z
SECONDS_SINCE_1970 = re.compile(r"\b1[67]\d{8}\b")


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An hour before UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


def log_run(path: Path, records: Sequence[Record], origin: float = 0.0, source: str = "clip.mp4",
            model: str = "gesture", digest: str = "0123456789abcdef") -> str:
    """Adds a run to a log; returns the log's identity."""
    with EventLog(path, model, source, digest) as log:
        log.write(Frame(grey(), origin, 0, "0"), records)
        return log.identity


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same clip run twice, by two models."""
    path = tmp_path / "files.db"
    log_run(path, [event("left", 1, 2), event("up", 3, 4)])
    log_run(path, [event("left", 1.5, 2)], model="mine", digest="fedcba9876543210")
    return path


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """Three events of two cameras of a service, a minute apart."""
    path = tmp_path / "live.db"
    log_run(path, [event("left", NOON + 120.25, NOON + 121, camera="cell-3"),
                   event("up", NOON + 180, NOON + 181, camera="cell-4"),
                   event("left", NOON + 240, NOON + 242, camera="cell-3")], origin=NOON, source="service")
    return path


Captured = pytest.CaptureFixture[str]


def ask(capsys: Captured, *words: str | Path) -> tuple[str, str]:
    """What `gatestream events` prints and tells."""
    assert main(["events", *map(str, words)]) == 0
    return capsys.readouterr()


def refusal(capsys: Captured, *words: str | Path) -> str:
    assert main(["events", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


# ---- runs and logs ---------------------------------------------------------------------------------------------

def test_the_same_clip_run_twice_can_be_told_apart(files: Path, capsys: Captured) -> None:
    wanted = [("1", "clip.mp4", "gesture", "0123456789abcdef"), ("1", "clip.mp4", "gesture", "0123456789abcdef"),
              ("2", "clip.mp4", "mine", "fedcba9876543210")]
    fields = ("run", "source", "model", "digest")
    rows = list(csv.DictReader(io.StringIO(ask(capsys, files, "--format", "csv")[0])))
    assert [tuple(row[name] for name in fields) for row in rows] == wanted
    lines = [json.loads(line) for line in ask(capsys, files, "--format", "jsonl")[0].splitlines()]
    assert [tuple(str(line[name]) for name in fields) for line in lines] == wanted
    head, *table = (line.split() for line in ask(capsys, files)[0].splitlines())
    assert (head[0], [row[0] for row in table]) == ("run", ["1", "1", "2"])
    assert ask(capsys, files, "--run", "2")[0].split()[0] == "camera"  # one run needs no column


def test_runs_are_listed(files: Path, capsys: Captured) -> None:
    with closing(sqlite3.connect(files)) as db:
        db.execute("UPDATE runs SET started = ?", (NOON,))
        db.commit()
    out, _ = ask(capsys, files, "--runs")
    assert [line.split() for line in out.splitlines()] == [
        ["run", "started", "source", "model", "digest", "events"],
        ["1", "2026-11-29", "13:00:00+01:00", "clip.mp4", "gesture", "01234567", "2"],
        ["2", "2026-11-29", "13:00:00+01:00", "clip.mp4", "mine", "fedcba98", "1"]]
    rows = list(csv.DictReader(io.StringIO(ask(capsys, files, "--runs", "--format", "csv", "--utc")[0])))
    assert [(row["run"], row["started_at"], row["events"]) for row in rows] == [
        ("1", "2026-11-29T12:00:00.000+00:00", "2"), ("2", "2026-11-29T12:00:00.000+00:00", "1")]
    lines = [json.loads(line) for line in ask(capsys, files, "--runs", "--format", "jsonl")[0].splitlines()]
    assert [(line["type"], line["run"], line["started_at"], line["digest"]) for line in lines] == [
        ("run", 1, NOON, "0123456789abcdef"), ("run", 2, NOON, "fedcba9876543210")]
    assert "--runs" in refusal(capsys, files, "--runs", "--label", "left")


def test_several_logs_at_once(live: Path, files: Path, tmp_path: Path, capsys: Captured) -> None:
    other = tmp_path / "other.db"
    log_run(other, [event("down", NOON + 200, NOON + 201, camera="cell-9")], origin=NOON, source="service")
    rows = list(csv.DictReader(io.StringIO(ask(capsys, live, other, "--format", "csv")[0])))
    assert [(Path(row["log"]).name, row["label"]) for row in rows] == [
        ("live.db", "left"), ("live.db", "up"), ("other.db", "down"), ("live.db", "left")]  # by time
    assert [line.split()[-5] for line in ask(capsys, live, other)[0].splitlines()[1:]]
    assert len(ask(capsys, live, other, files, "--runs")[0].splitlines()) == 1 + 4
    assert ask(capsys, live, other, "--camera", "cell-9")[0].count("cell-9") == 1


def test_the_log_need_not_be_named(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    assert "FILE.db" in refusal(capsys)
    live.rename("events.db")
    assert "cell-4" in ask(capsys)[0]


# ---- times -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "wanted"), [
    ([], "2026-11-29T13:02:00.250+01:00"), (["--utc"], "2026-11-29T12:02:00.250+00:00"),
    (["--raw"], "1795953720.25")])
def test_live_times_are_the_clocks(live: Path, options: list[str], wanted: str, capsys: Captured) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(capsys, live, "--format", "csv", *options)[0])))
    assert rows[0]["started_at"] == wanted
    table, _ = ask(capsys, live, *options)
    assert wanted.replace("T", " ").replace(".250+", "+") in table
    for text in (table, *rows[0].values()):
        assert bool(SECONDS_SINCE_1970.search(text)) <= (options == ["--raw"])
    first = json.loads(ask(capsys, live, "--format", "jsonl", *options)[0].splitlines()[0])
    assert first["started_at"] == NOON + 120.25  # as records have it


def test_times_of_files_are_their_seconds(files: Path, capsys: Captured) -> None:
    for options in ([], ["--utc"], ["--raw"]):
        rows = list(csv.DictReader(io.StringIO(ask(capsys, files, "--format", "csv", *options)[0])))
        assert [row["started_at"] for row in rows] == ["1.0", "3.0", "1.5"]


@pytest.mark.parametrize(("text", "wanted"), [
    ("12.5", 12.5), ("13:00", NOON), ("12:30", NOON - 1800), ("12:00Z", NOON), ("07:00-05:00", NOON),
    ("2026-11-29T12:00", NOON - 3600), ("2026-11-29 12:00:00.5", NOON - 3599.5), ("2026-11-29T12:00Z", NOON),
    ("2026-11-29", NOON - 13 * 3600), ("10m", NOON - 600), ("2h", NOON - 7200), ("1h30m", NOON - 5400),
    ("1.5d", NOON - 129600), ("90s", NOON - 90), ("10min", NOON - 600), ("9:05", NOON - 14100)])
def test_what_a_time_means(text: str, wanted: float) -> None:
    assert parse_time(text, NOON) == wanted


def test_a_day_ends_at_its_end_and_times_may_be_utc() -> None:
    assert parse_time("2026-11-29", NOON, end=True) == NOON + 11 * 3600
    assert parse_time("11:00", NOON, utc=True) == NOON - 3600
    assert parse_time("13:30", NOON, end=True) == NOON + 1800  # a span may end later
    assert format_time(NOON + 0.25, "utc") == "2026-11-29T12:00:00.250+00:00"


@pytest.mark.parametrize(("text", "words"), [
    ("soon", "14:02"), ("25:00", "14:02"), ("nan", "14:02"), ("", "14:02"), ("10 minutes", "14:02"),
    ("13:30", "2026-11-28T13:30")])  # it is 13:00
def test_what_is_no_time(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_time(text, NOON)


@pytest.mark.parametrize(("options", "labels"), [
    (["--since", "2026-11-29T13:02", "--until", "2026-11-29T13:03:30"], ["left", "up"]),
    (["--since", "2026-11-29T12:03:30", "--utc"], ["left"]), (["--until", "2026-11-29"], ["left", "up", "left"]),
    (["--until", "2026-11-28"], []), (["--since", str(NOON + 230)], ["left"])])
def test_events_of_a_time_are_found(live: Path, options: list[str], labels: list[str], capsys: Captured) -> None:
    rows = csv.DictReader(io.StringIO(ask(capsys, live, "--format", "csv", *options)[0]))
    assert [row["label"] for row in rows] == labels


@pytest.mark.parametrize(("log", "options", "words"), [
    ("files", ["--since", "00:00"], "no time of day"), ("files", ["--until", "2026-11-29T14:02"], "no time of day"),
    ("files", ["--since", "10m"], "no time of day"), ("live", ["--since", "12.5"], "live sources"),
    ("live", ["--until", "5"], "live sources"), ("live", ["--since", "12.5", "--until", "1h"], "two times"),
    ("live", ["--since", "1m", "--until", "1h"], "swap"), ("live", ["--since", "soon"], "soon"),
    ("live", ["--utc", "--raw"], "--utc"),
    ("live", ["--camera", "cell3"], "did you mean cell-3"), ("live", ["--label", "Left"], "did you mean left"),
    ("live", ["--head", "gestures"], "did you mean gesture")])
def test_an_empty_answer_says_why(log: str, options: list[str], words: str, request: pytest.FixtureRequest,
                                  capsys: Captured) -> None:
    assert words in refusal(capsys, request.getfixturevalue(log), *options)


def test_of_files_and_cameras_in_one_question_neither_is_left_out_silently(files: Path, live: Path,
                                                                           capsys: Captured) -> None:
    out, told = ask(capsys, files, live, "--until", "2026-11-29T13:02:30")
    assert (len(out.splitlines()), told) == (2, "gatestream: 3 events of files left out, which have no time of day\n")
    out, told = ask(capsys, files, live, "--until", "1.2")
    assert (len(out.splitlines()), told) == (2, "gatestream: 3 events of live sources left out, which have times of "
                                                "day\n")


# ---- videos of events ------------------------------------------------------------------------------------------

def test_show_me_what_happened(live: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    first, second = (clip_name(each.id, each.event.camera, each.event.label)
                     for each in read_events(live, camera="cell-3"))
    (folder / first).touch()
    asked = (live, "--since", "2026-11-29T13:02", "--until", "2026-11-29T13:05", "--camera", "cell-3", "--videos")
    out, told = ask(capsys, *asked)
    assert [line.split()[-2:] for line in out.splitlines()] == [
        ["id", "video"], [first.partition("_")[0], first], [second.partition("_")[0], second]]
    assert told == ""
    out, told = ask(capsys, *asked, folder)
    assert f" {folder / first}\n" in re.sub(" +\n", "\n", out)
    assert f"{second} (not there)" in out
    assert told == f"gatestream: videos in {folder}: 1 of 2\n"
    lines = [json.loads(line) for line in ask(capsys, *asked, folder, "--format", "jsonl")[0].splitlines()]
    assert [(line["clip"], line["video"]) for line in lines] == [(first, str(folder / first)), (second, None)]
    rows = list(csv.DictReader(io.StringIO(ask(capsys, *asked, "--format", "csv")[0])))
    assert [row["clip"] for row in rows] == [first, second]


def test_what_was_recorded_between_events_is_shown_too(live: Path, tmp_path: Path, capsys: Captured) -> None:
    folder, at = tmp_path / "clips", "2026-11-29T13:0"
    folder.mkdir()
    paths = []
    for camera, start in (("cell-3", 60), ("cell-3", 120), ("cell-3", 180), ("cell-3", 300), ("quiet", 120)):
        writer = SegmentWriter(folder, camera, NOON + start, (48, 64), jpeg=False)
        for k in range(60):
            writer.write(NOON + start + k, grey(48, 64))
        writer.close()
        paths.append(str(writer.part.with_suffix("")))
    asked = (live, "--since", f"{at}2:30", "--until", f"{at}3:30", "--videos", folder)
    out, told = ask(capsys, *asked, "--camera", "cell-3")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["camera", "recorded", "from", "to", "video"],
        ["cell-3", "2026-11-29", "13:02:00+01:00", "13:02:59", paths[1]],
        ["cell-3", "2026-11-29", "13:03:00+01:00", "13:03:59", paths[2]]]
    lines = [json.loads(line) for line in ask(capsys, *asked, "--format", "jsonl")[0].splitlines()]
    segments = [line for line in lines if line["type"] == "segment"]
    assert [line["video"] for line in segments] == [paths[1], paths[2], paths[4]]
    assert (segments[0]["camera"], segments[0]["started_at"]) == ("cell-3", NOON + 120)
    assert len(lines) == 4
    out, _ = ask(capsys, *asked, "--camera", "quiet")  # of which there is no event
    assert paths[4] in out
    out, told = ask(capsys, *asked, "--format", "csv")
    assert paths[1] not in out
    assert "3 segments were recorded" in told
    out, told = ask(capsys, live, "--videos", folder)  # without a time
    assert ("segment" in out + told, paths[1] in out) == (False, False)
    assert "segment" not in "".join(ask(capsys, *asked[:-1]))


# ---- subtitles and annotations ---------------------------------------------------------------------------------

def cues(text: str) -> list[tuple[str, str]]:
    return [(start, words) for start, words in re.findall(r"^([\d:.]+) --> .*\n(.*)$", text, re.MULTILINE)]


def test_subtitles_have_every_run_that_was_asked_for(files: Path, tmp_path: Path, capsys: Captured) -> None:
    out, told = ask(capsys, files, "--format", "vtt")
    assert cues(out) == [("00:00:01.000", "run 1: left"), ("00:00:01.500", "run 2: left"),
                         ("00:00:03.000", "run 1: up")]
    assert "2 runs" in told
    assert "--run N" in told
    assert "run 2: clip.mp4, mine fedcba98" in out
    out, told = ask(capsys, files, "--format", "vtt", "--run", "-1")
    assert (cues(out), told) == ([("00:00:01.500", "left")], "")
    folder = tmp_path / "documents"
    folder.mkdir()
    ask(capsys, files, "--format", "vtt", "--out", folder)
    assert {path.name: cues(path.read_text()) for path in folder.iterdir()} == {
        "run-1.vtt": [("00:00:01.000", "left"), ("00:00:03.000", "up")], "run-2.vtt": [("00:00:01.500", "left")]}


def test_runs_of_a_live_source_follow_one_another(live: Path, capsys: Captured) -> None:
    log_run(live, [event("down", NOON + 3601, NOON + 3602, camera="cell-4", head="verb")], origin=NOON + 3600)
    out, _ = ask(capsys, live, "--format", "vtt")
    assert cues(out) == [
        ("00:02:00.250", "run 1, cell-3, gesture: left"), ("00:03:00.000", "run 1, cell-4, gesture: up"),
        ("00:04:00.000", "run 1, cell-3, gesture: left"), ("01:00:01.000", "run 2, cell-4, verb: down")]


def test_cues_name_camera_and_head_where_there_are_several(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "log.db"
    log_run(path, [event("take", 1, 2, head="verb"), event("cup", 1, 2, head="noun")])
    assert [text for _, text in cues(ask(capsys, path, "--format", "vtt")[0])] == ["verb: take", "noun: cup"]


def test_annotations_have_every_run_that_was_asked_for(files: Path, tmp_path: Path, capsys: Captured) -> None:
    out, told = ask(capsys, files, "--format", "elan")
    document = ElementTree.fromstring(out)
    assert {tier.get("TIER_ID"): [one.text for one in tier.iter("ANNOTATION_VALUE")]
            for tier in document.iter("TIER")} == {"run 1 0 gesture": ["left", "up"], "run 2 0 gesture": ["left"]}
    assert "2 runs" in told
    ids = [one.get("ANNOTATION_ID") for one in document.iter("ALIGNABLE_ANNOTATION")]
    assert len(ids) == len(set(ids)) == 3
    ask(capsys, files, "--format", "elan", "--out", tmp_path)
    assert {path.name for path in tmp_path.glob("*.eaf")} == {"run-1.eaf", "run-2.eaf"}


# ---- datasets --------------------------------------------------------------------------------------------------

def said(head: str, label: str, start: float, end: float, camera: str = "0") -> Event:
    return event(label, start, end, camera=camera, head=head)


def narrations(folder: Path) -> list[tuple[str, str, str]]:
    rows = csv.DictReader(io.StringIO((folder / "EPIC_100_train.csv").read_text()))
    return [(row["video_id"], row["verb"], row["noun"]) for row in rows]


def test_a_noun_without_a_verb_is_told_and_can_be_kept(tmp_path: Path, capsys: Captured) -> None:
    path, out = tmp_path / "log.db", tmp_path / "set"
    log_run(path, [said("verb", "cut", 1, 3), said("noun", "knife", 1, 3), said("noun", "cup", 5, 6),
                   said("noun", "bread", 2.5, 6)])
    printed, told = ask(capsys, path, "--format", "epic", "--out", out)
    assert printed == f"{out}: 1 narration of 1 video (0_01)\n"
    assert told == "gatestream: 2 nouns that no verb overlaps most left out; --keep-unpaired keeps them\n"
    assert narrations(out) == [("0_01", "cut", "knife")]
    printed, told = ask(capsys, path, "--format", "epic", "--out", out, "--keep-unpaired")
    assert (printed, told) == (f"{out}: 3 narrations of 1 video (0_01)\n", "")
    assert narrations(out) == [("0_01", "cut", "knife"), ("0_01", "unknown", "bread"), ("0_01", "unknown", "cup")]


@pytest.mark.parametrize("form", ["epic", "ssv2"])
def test_a_dataset_of_nothing_is_refused(tmp_path: Path, form: str, capsys: Captured) -> None:
    path, out = tmp_path / "log.db", tmp_path / "set"
    log_run(path, [said("noun", "cup", 1, 2)] if form == "epic" else [said("gesture", "unknown", 1, 2)])
    option = "--keep-unpaired" if form == "epic" else "--with-unknown"
    assert option in refusal(capsys, path, "--format", form, "--out", out)
    assert not out.exists()


def test_events_without_a_certain_label_are_told(tmp_path: Path, capsys: Captured) -> None:
    path, out = tmp_path / "log.db", tmp_path / "set"
    log_run(path, [event("left", 1, 2), event("unknown", 3, 4)])
    printed, told = ask(capsys, path, "--format", "ssv2", "--out", out)
    assert printed.startswith(f"{out}: 1 event of 1 video (")
    assert told == "gatestream: 1 event without a certain label left out; --with-unknown keeps it\n"


def test_videos_of_cameras_and_logs_are_told_apart(tmp_path: Path, capsys: Captured) -> None:
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    for path in paths:
        log_run(path, [said("verb", "cut", 1, 3, "cell 3"), said("verb", "cut", 1, 3, "cell/3")])
    ask(capsys, *paths, "--format", "epic", "--out", tmp_path / "set")
    assert sorted(video for video, _, _ in narrations(tmp_path / "set")) == ["cell-3-b_01", "cell-3-b_02", "cell-3_01",
                                                                           "cell-3_02"]


# ---- retention -------------------------------------------------------------------------------------------------

DAY_S = 86_400.0


def deliver(path: Path, done: int, refused: Sequence[int] = ()) -> None:
    """Puts all events and then all gaps into the outbox, of which one sink has so many."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO outbox (event) SELECT id FROM events ORDER BY id")
        db.execute("INSERT INTO outbox (gap) SELECT id FROM gaps ORDER BY id")
        db.execute("INSERT INTO deliveries VALUES ('webhook', ?), ('mqtt', 99)", (done,))
        columns = len(db.execute("PRAGMA table_info(refusals)").fetchall())
        for number in refused:
            db.execute(f"INSERT INTO refusals VALUES ({', '.join('?' * columns)})",
                       ("webhook", number, "422", *[0] * (columns - 3)))


def test_what_is_old_is_deleted_and_what_a_sink_waits_for_stays(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    days = [event("left", NOON - age * DAY_S, NOON - age * DAY_S + 1) for age in (9, 8, 7, 2, 1)]
    log_run(path, [*days, replace(GAP, at=NOON - 9 * DAY_S)], origin=NOON)
    deliver(path, done=2, refused=[1])
    done = compact(path, keep_days=5, now=NOON)
    assert (done.events, done.gaps, done.awaited) == (1, 0, 3)
    assert [each.event for each in read_events(path)] == [days[0], *days[2:]]
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute("SELECT number, event, gap FROM outbox ORDER BY number").fetchall() == [
            (1, 1, None), (3, 3, None), (4, 4, None), (5, 5, None), (6, None, 1)]
        db.execute("UPDATE deliveries SET done = 6")
        db.execute("DELETE FROM refusals")
    assert compact(path, keep_days=5, now=NOON)[:3] == (2, 1, 0)
    assert [each.event for each in read_events(path)] == days[3:]


def test_events_and_gaps_of_files_are_as_old_as_their_run(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    for _ in range(2):
        log_run(path, [event(), GAP])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET started = ? WHERE id = 1", (NOON - 9 * DAY_S,))
        db.execute("UPDATE runs SET started = ? WHERE id = 2", (NOON,))
    ids = [each.id for each in read_events(path)]
    assert compact(path, keep_days=5, now=NOON)[:3] == (1, 1, 0)
    assert [each.id for each in read_events(path)] == ids[1:]  # ids stay what they were


@pytest.mark.parametrize("earlier", [False, True])
def test_a_log_keeps_to_its_size_while_it_is_in_use(tmp_path: Path, earlier: bool) -> None:
    path = tmp_path / "log.db"
    with EventLog(path, "gesture", "service") as log:
        with closing(sqlite3.connect(path)) as db, db:
            if earlier:  # made by a version that could give back nothing
                db.execute("PRAGMA auto_vacuum = NONE")
                db.execute("VACUUM")
            db.executemany("INSERT INTO events VALUES (NULL, 1, 'cell-3', 'gesture', 'left', ?, ?, 0.9, ?)",
                           [(NOON + k, NOON + k + 1, f"{k:0100d}") for k in range(4000)])
        done = compact(path, keep_mb=0.3)
        assert path.stat().st_size < 320_000
        assert done.freed_bytes > 200_000
        log.write(None, [event("up", NOON + 9000, NOON + 9001)])
    left = read_events(path)
    assert len(left) == 4001 - done.events
    assert left[-1].event.label == "up"
    assert left[0].event.started_at == NOON + done.events  # the oldest are gone
    assert compact(path, keep_mb=0.3)[:3] == (0, 0, 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_logs_are_compacted_by_a_command(live: Path, tmp_path: Path, capsys: Captured) -> None:
    out, _ = ask(capsys, live, "--compact", "--keep-days", "0")
    assert out.startswith(f"{live}: 3 events and 0 gaps deleted, ")
    assert read_events(live) == []
    assert "--compact" in refusal(capsys, live, "--keep-days", "3")
    assert "no event log" in refusal(capsys, tmp_path / "none.db", "--compact")
    log_run(live, [event("left", NOON, NOON + 1)])
    deliver(live, done=0)
    assert ask(capsys, live, "--compact", "--keep-days", "0") == (
        f"{live}: 0 events and 0 gaps deleted, 0.0 MB given back\n",
        f"gatestream: {live}: 1 record kept though old, for sinks that have not got them\n")
