"""Readers of annotations: on the published files where they are at hand, and on small ones of every format."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines.datasets import Dataset, Segment, epic, folders, open_dataset
from engines.datasets.kinds import DATASET_READERS
from engines.datasets.mirror import mirror_labels
from engines.errors import DatasetError, UsageError

EPIC_COLUMNS = ("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp",
                "stop_timestamp", "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class",
                "all_nouns", "all_noun_classes")


@pytest.fixture(scope="session")
def published(shared: Path) -> Path:
    """The published annotation files."""
    return shared / "data" / "annotations"


def table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def picture(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), value, np.uint8))


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def kinds(dataset: Dataset) -> dict[str, int]:
    return dict(Counter(problem.kind for problem in dataset.problems))


def only(dataset: Dataset) -> Segment:
    ((segment,),) = (segments for segments in dataset.splits.values() if segments)
    return segment


def epic_row(name: str = "P01_01_0", video: str = "P01_01", start: str = "00:00:01.00", stop: str = "00:00:02.50",
             frames: tuple[int, int] | None = None, verb: object = 0, noun: object = 1,
             nouns: str | None = None) -> tuple[Any, ...]:
    if frames is None:
        rate = epic.frame_rate(video)
        first, last = (max(1, int((float(stamp[6:]) + 60 * int(stamp[3:5])) * rate)) for stamp in (start, stop))
        frames = first, last
    return (name, video.split("_")[0], video, "", start, stop, *frames, "take door", "take", verb, "door", noun,
            "['door']", f"[{noun}]" if nouns is None else nouns)


def epic_folder(folder: Path, *rows: tuple[Any, ...]) -> Path:
    for head, names in (("verb", ("take", "turn-on")), ("noun", ("tap", "door:kitchen", "pan"))):
        table(folder / f"EPIC_100_{head}_classes.csv",
              [("id", "key", "instances", "category"), *((i, name, [name], "") for i, name in enumerate(names))])
    table(folder / "EPIC_100_train.csv", [EPIC_COLUMNS, *rows])
    table(folder / "EPIC_100_validation.csv", [EPIC_COLUMNS])
    return folder


@pytest.fixture(scope="module")
def epic100(published: Path) -> Dataset:
    return open_dataset(published / "epic100")


class TestEpicAsPublished:
    def test_counts(self, epic100: Dataset) -> None:
        assert {split: len(segments) for split, segments in epic100.splits.items()} == \
            {"validation": 9668, "test": 13092}
        assert {head: len(labels) for head, labels in epic100.heads.items()} == {"verb": 97, "noun": 300}
        assert {head: len(labels) for head, labels in epic100.rare.items()} == {"verb": 86, "noun": 228}
        assert kinds(epic100) == {"no file for a split": 1}  # the training file is not among the published ones here
        assert len({tuple(segment.labels.values()) for segment in epic100.splits["validation"]}) == 1352

    def test_what_a_row_becomes(self, epic100: Dataset) -> None:
        first = epic100.splits["validation"][0]
        assert (first.id, first.group, first.start_s, first.stop_s) == ("P01_11_0", "P01", 0.0, 1.89)
        assert dict(first.labels) == {"verb": "take", "noun": "plate"}
        assert first.media.path.parts[-3:] == ("P01", "videos", "P01_11.MP4")
        assert first.media.stated_rate == pytest.approx(59.94, abs=0.01)
        for split, unseen in (("validation", {"P18", "P32"}), ("test", {"P33", "P34", "P36"})):
            assert {segment.group for segment in epic100.splits[split] if segment.kind == "unseen"} == unseen
        assert not any(segment.labels for segment in epic100.splits["test"])

    def test_classes_have_the_published_numbers(self, epic100: Dataset, published: Path) -> None:
        by_id = {segment.id: segment for segment in epic100.splits["validation"]}
        with (published / "epic100" / "EPIC_100_validation.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sum(not row["narration_timestamp"] for row in rows) == 70  # these rows are read like any other
        for row in rows:
            labels = by_id[row["narration_id"]].labels
            assert epic100.heads["verb"].index(labels["verb"]) == int(row["verb_class"])
            assert epic100.heads["noun"].index(labels["noun"]) == int(row["noun_class"])

    def test_frame_columns_follow_60_and_50_frames_a_second(self, published: Path) -> None:
        away: Counter[int] = Counter()
        for name in ("validation", "test_timestamps", "uda_source_train"):
            with (published / "epic100" / f"EPIC_100_{name}.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    for end in ("start", "stop"):
                        hours, minutes, seconds = row[f"{end}_timestamp"].split(":")
                        at_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
                        away[epic.frame_number(at_s, row["video_id"]) - int(row[f"{end}_frame"])] += 1
        assert set(away) <= {-1, 0, 1}
        assert away[0] > 0.98 * sum(away.values())

    def test_overlapping_segments_are_kept(self, epic100: Dataset) -> None:
        by_video: dict[Path, list[tuple[float, float]]] = {}
        for segment in epic100.splits["validation"]:
            assert segment.stop_s is not None
            by_video.setdefault(segment.media.path, []).append((segment.start_s, segment.stop_s))
        pairs = [(a, b) for spans in by_video.values() for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False)]
        assert sum(b[0] < a[1] for a, b in pairs) / len(pairs) == pytest.approx(0.256, abs=0.01)

    def test_adaptation_files_stand_in_where_the_main_ones_are_absent(self, published: Path, tmp_path: Path) -> None:
        for path in (published / "epic100").glob("EPIC_100_*.csv"):
            if "uda" in path.name or "classes.csv" in path.name:
                shutil.copy(path, tmp_path)
        dataset = open_dataset(tmp_path)
        assert {split: len(segments) for split, segments in dataset.splits.items()} == \
            {"train": 16115, "source_validation": 5002, "validation": 7906}
        assert kinds(dataset) == {}


class TestEpic:
    def test_times_of_videos_and_numbers_of_frames(self, tmp_path: Path) -> None:
        rows = [epic_row("P01_01_0", "P01_01"), epic_row("P01_101_0", "P01_101", frames=(50, 125)),
                epic_row("P02_01_0", "P02_01", frames=(1, 1), start="00:00:00.00", stop="00:00:00.02")]
        folder = epic_folder(tmp_path, *rows)
        touch(folder / "EPIC-KITCHENS/P01/videos/P01_01.MP4")
        picture(folder / "EPIC-KITCHENS/P01/rgb_frames/P01_101/frame_0000000001.jpg")
        picture(folder / "EPIC-KITCHENS/P02/rgb_frames/P02_01/frame_0000000001.jpg")
        video, frames, one = open_dataset(folder).splits["train"]
        assert (video.media.rate, video.start_s, video.stop_s) == (None, 1.0, 2.5)
        # frames 50 to 125, both included, of a folder whose image 1 is at 0 s, at 50 frames/s
        assert (frames.media.rate, frames.media.first, frames.start_s, frames.stop_s) == (50.0, 1, 49 / 50, 125 / 50)
        assert (one.media.rate, one.start_s, one.stop_s) == (60.0, 0.0, 1 / 60)

    @pytest.mark.parametrize(("row", "kind"), [
        (epic_row("b", start="00:00:03.00"), "stop before start"),
        (epic_row("b", start="00:00:02.50"), "zero length"),
        (epic_row("a"), "duplicate id"),
        (epic_row("b", verb=2), "label outside the list"),
        (epic_row("b", noun=-1), "label outside the list"),
        (epic_row("b", nouns="[2, 1]"), "nouns disagree"),
        (epic_row("b", nouns="__import__('os').getpid()"), "broken row"),
        (epic_row("b", nouns="{[]: 1}"), "broken row"),
        (epic_row("b", nouns="[" * 50_000), "broken row"),
        (epic_row("b", start="9" * 400 + ":00:01.00", frames=(60, 150)), "broken row"),
        (epic_row("b", verb="x"), "broken row"),
        (epic_row("b", frames=(60, 75)), "frames disagree with timestamps"),
        (epic_row("b", stop="2.5", frames=(60, 150)), "broken row"),
        (epic_row("b", "../../P01_01"), "no such name of a video"),
    ])
    def test_faults_of_rows_are_named(self, row: tuple[Any, ...], kind: str, tmp_path: Path) -> None:
        dataset = open_dataset(epic_folder(tmp_path, epic_row("a"), row))
        assert kinds(dataset) == {kind: 1}
        kept = {"nouns disagree", "frames disagree with timestamps"}
        assert len(dataset.splits["train"]) == (2 if kind in kept else 1)

    def test_the_same_id_in_two_splits(self, tmp_path: Path) -> None:
        folder = epic_folder(tmp_path, epic_row("a"))
        table(folder / "EPIC_100_validation.csv", [EPIC_COLUMNS, epic_row("a")])
        dataset = open_dataset(folder)
        assert kinds(dataset) == {"same id in two splits": 1}
        assert only(dataset).id == "a"

    def test_archives_of_frames_ask_to_be_unpacked(self, tmp_path: Path) -> None:
        touch(epic_folder(tmp_path, epic_row()) / "P01/rgb_frames/P01_01.tar")
        assert kinds(open_dataset(tmp_path)) == {"tar not unpacked": 1}

    @pytest.mark.parametrize(("video", "day", "expected"), [
        ("P01_109", 1_590_000_000, {"frames older than their correction": 1}),  # May 2020
        ("P01_109", 1_610_000_000, {}), ("P01_108", 1_590_000_000, {})])
    def test_frames_before_their_correction(self, video: str, day: int, expected: dict[str, int],
                                            tmp_path: Path) -> None:
        image = epic_folder(tmp_path, epic_row(video=video)) / "P01/rgb_frames" / video / "frame_0000000001.jpg"
        picture(image)
        os.utime(image, (day, day))
        assert kinds(open_dataset(tmp_path)) == expected

    def test_pickles_are_not_opened(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "opened",)

        folder = epic_folder(tmp_path, epic_row())
        for name in ("train", "validation", "test_timestamps"):
            (folder / f"EPIC_100_{name}.pkl").write_bytes(pickle.dumps(Trap()))
        open_dataset(folder)
        assert not (tmp_path / "opened").exists()


class TestSomethingAsPublished:
    def test_templates_without_brackets_are_the_classes(self, published: Path, tmp_path: Path) -> None:
        for name, source in (("labels", "labels"), ("train", "compositional_oneobject_train"),
                             ("validation", "fewshot_base_validation")):
            shutil.copy(published / "ssv2" / f"{source}.json", tmp_path / f"something-something-v2-{name}.json")
        dataset = open_dataset(tmp_path)
        numbers = json.loads((tmp_path / "something-something-v2-labels.json").read_text())
        assert {label: i for i, label in enumerate(dataset.heads["action"])} == numbers
        assert {split: len(segments) for split, segments in dataset.splits.items()} == \
            {"train": 6560, "validation": 12467 - 495}
        assert kinds(dataset) == {"same id in two splits": 495}  # these two files come from different benchmarks
        first = dataset.splits["train"][0]
        assert (first.id, first.labels["action"]) == \
            ("203403", "Moving something and something closer to each other")
        assert first.media.path.name == "203403.webm"

    @pytest.mark.parametrize("version", ["sthv1", "sthv2"])
    def test_the_three_pairs_that_a_flip_swaps(self, version: str, published: Path) -> None:
        labels = sorted((published / "label_maps" / f"{version}_label_map.txt").read_text().strip().split("\n"))
        found = {(labels.index(label), labels.index(other)) for label, other in mirror_labels(labels).items()}
        assert found == {(86, 87), (87, 86), (93, 94), (94, 93), (166, 167), (167, 166)}

    def test_jester_labels(self, published: Path, tmp_path: Path) -> None:
        shutil.copy(published / "jester/jester-v1-labels.csv", tmp_path)
        (tmp_path / "jester-v1-train.csv").write_text("34870;Drumming Fingers\n56557;Sliding Two Fingers Right\n")
        by_name, by_line = (open_dataset(tmp_path, order=order).heads["action"] for order in ("sorted", "lines"))
        assert by_name[:2] == ("Doing other things", "Drumming Fingers")
        assert by_line[:2] == ("Swiping Left", "Swiping Right")
        assert sorted(by_line) == list(by_name)
        assert len(by_name) == 27
        flips = open_dataset(tmp_path).mirrored["action"]
        assert flips == {a: b for x, y in (("Swiping Left", "Swiping Right"),
                                           ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
                                           ("Turning Hand Clockwise", "Turning Hand Counterclockwise"))
                         for a, b in ((x, y), (y, x))}


class TestSomething:
    def v2(self, folder: Path, train: object, labels: object = None) -> Path:
        (folder / "labels.json").write_text(json.dumps(labels or {"Showing something": "1", "Folding something": "0"}))
        (folder / "train.json").write_text(json.dumps(train))
        (folder / "test.json").write_text(json.dumps([{"id": "9"}]))
        return folder

    def test_v2(self, tmp_path: Path) -> None:
        touch(self.v2(tmp_path, [{"id": "7", "label": "showing a pen", "template": "Showing [something]",
                                  "placeholders": ["a pen"]}]) / "20bn-something-something-v2/7.webm")
        dataset = open_dataset(tmp_path)
        assert dataset.heads["action"] == ("Folding something", "Showing something")
        (train,), (test,) = dataset.splits["train"], dataset.splits["test"]
        assert dict(train.labels) == {"action": "Showing something"}
        assert train.media.path == tmp_path / "20bn-something-something-v2/7.webm"
        assert (test.id, dict(test.labels)) == ("9", {})

    @pytest.mark.parametrize(("record", "kind"), [
        ({"id": "8", "template": "Eating [something]"}, "label outside the list"),
        ({"id": "7", "template": "Showing [something]"}, "duplicate id"),
        ({"id": "8", "label": "showing a pen"}, "record without id or template"),
        *(({"id": name, "template": "Showing [something]"}, "no such name of a video")
          for name in ("..", "a\0", "\ud800", "7\n", "8" * 300)),
        ({"id": "../8", "template": "Showing [something]"}, "no such name of a video"), ("8", "record without id or "
                                                                                         "template")])
    def test_faults_of_records(self, record: object, kind: str, tmp_path: Path) -> None:
        dataset = open_dataset(self.v2(tmp_path, [{"id": "7", "template": "Showing [something]"}, record]))
        assert kinds(dataset) == {kind: 1}

    @pytest.mark.parametrize("labels", [{"a": "0", "b": "2"}, {"a": "0", "b": "0"}, {"a": "x"}, {"a": math.inf},
                                        ["a", "b"]])
    def test_labels_without_numbers_in_a_row(self, labels: object, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"labels\.json"):
            open_dataset(self.v2(tmp_path, [{"id": "7", "template": "a"}], labels))

    @pytest.mark.parametrize("names", ["%05d.jpg", "%06d.jpg", "img_%05d.jpg"])
    def test_v1_and_folders_of_frames(self, names: str, tmp_path: Path) -> None:
        (tmp_path / "something-something-v1-labels.csv").write_text("b left; c\na\n")
        (tmp_path / "something-something-v1-validation.csv").write_text("7;a\n")
        (tmp_path / "something-something-v1-test.csv").write_text("8\n")
        for i in (1, 2, 10):
            picture(tmp_path / "20bn-something-something-v1/7" / (names % i), 10 * i)
        dataset = open_dataset(tmp_path)
        assert (dataset.name, dataset.heads["action"]) == ("Something-Something V1", ("a", "b left; c"))
        media = dataset.splits["validation"][0].media
        assert (media.path.name, media.rate, media.first) == ("7", 12.0, None)

    def test_repacked_jester(self, tmp_path: Path) -> None:
        table(tmp_path / "Train.csv", [("label_id", "video_id", "label", "frames"), (1, 7, "Swiping Left", 37),
                                       (2, 8, "Thumb Up", 37)])
        table(tmp_path / "Validation.csv", [("id", "label"), (9, "Thumb Up")])
        table(tmp_path / "Test.csv", [("id", "frames"), (10, 3)])
        picture(tmp_path / "Train/7/00003.jpg")
        dataset = open_dataset(tmp_path)
        assert (dataset.name, dataset.heads["action"]) == ("Jester", ("Swiping Left", "Thumb Up"))
        assert [len(dataset.splits[split]) for split in ("train", "validation", "test")] == [2, 1, 1]
        assert dataset.splits["train"][0].media.path == tmp_path / "Train/7"
        with pytest.raises(DatasetError, match="without a file of labels"):
            open_dataset(tmp_path, order="lines")

    @pytest.mark.parametrize("line", ["7", "7;a;b", "7,a"])
    def test_broken_lines(self, line: str, tmp_path: Path) -> None:
        (tmp_path / "jester-v1-labels.csv").write_text("a\nb\n")
        (tmp_path / "jester-v1-train.csv").write_text(f"6;a\n{line}\n")
        with pytest.raises(DatasetError, match="line 2"):
            open_dataset(tmp_path)


class TestMirror:
    @pytest.mark.parametrize(("labels", "expected"), [
        (("left", "right", "up"), {"left": "right", "right": "left"}),
        (("turn_left", "turn_right"), {"turn_left": "turn_right", "turn_right": "turn_left"}),
        (("Turn left", "stop"), {"Turn left": ""}),
        (("from left to right", "from right to left"), {"from left to right": "from right to left",
                                                        "from right to left": "from left to right"}),
        (("circle-clockwise",), {"circle-clockwise": ""}),
        (("pulling it right out", "bright", "leftover"), {}),
    ])
    def test_directions_in_names(self, labels: tuple[str, ...], expected: dict[str, str]) -> None:
        assert mirror_labels(labels) == expected


class TestDiving48:
    def test_as_published(self, published: Path) -> None:
        dataset = open_dataset(published / "diving48")
        assert {split: len(segments) for split, segments in dataset.splits.items()} == {"train": 15027, "test": 1970}
        names = (published / "label_maps/diving48_label_map.txt").read_text().split("\n")[:48]
        assert dataset.heads["action"] == tuple(names)
        train, test = ({segment.group for segment in dataset.splits[split]} for split in ("train", "test"))
        assert not train & test  # competitions are not split
        assert kinds(dataset) == {}

    @pytest.mark.parametrize(("record", "kind"), [
        ({"label": 2}, "label outside the list"), ({"end_frame": 0}, "zero length"),
        ({"start_frame": 9, "end_frame": 3}, "stop before start"), ({"label": None}, "broken record"),
        ({"label": math.inf}, "broken record"), ({"end_frame": 10 ** 400}, "broken record"),
        ({"vid_name": "../x"}, "no such name of a video"), ({"vid_name": "v_1"}, "duplicate id")])
    def test_faults(self, record: dict[str, object], kind: str, tmp_path: Path) -> None:
        good = {"vid_name": "v_1", "label": 0, "start_frame": 0, "end_frame": 60}
        (tmp_path / "Diving48_vocab.json").write_text(json.dumps([["Back", "x"], ["Front", "y"]]))
        (tmp_path / "Diving48_V2_train.json").write_text(json.dumps([good, {**good, "vid_name": "v_2", **record}]))
        (tmp_path / "Diving48_V2_test.json").write_text("[]")
        dataset = open_dataset(tmp_path)
        assert kinds(dataset) == {kind: 1}
        assert (dict(only(dataset).labels), only(dataset).group) == ({"action": "Back+x"}, "v")

    def test_frames_have_the_rate_that_is_given(self, tmp_path: Path) -> None:
        (tmp_path / "Diving48_vocab.json").write_text(json.dumps([["Back"]]))
        (tmp_path / "Diving48_V2_train.json").write_text(json.dumps(
            [{"vid_name": "v_1", "label": 0, "start_frame": 0, "end_frame": 50}]))
        picture(tmp_path / "frames/v_1/frame000001.jpg")
        segment = only(open_dataset(tmp_path, rate=25))
        assert (segment.media.rate, segment.start_s, segment.stop_s) == (25, 0, 2)


class TestKinetics:
    HEADER = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")

    def test_files_and_classes(self, tmp_path: Path) -> None:
        table(tmp_path / "kinetics-400_train.csv", [self.HEADER, ("yoga", "-abc_DEF", 7, 17, "train", 0),
                                                    ("abseiling", "x" * 11, 0, 10, "train", 0)])
        table(tmp_path / "kinetics-400_val.csv", [self.HEADER, ("yoga", "y" * 11, 5, 15, "val", 0)])
        table(tmp_path / "test.csv", [self.HEADER[1:4], ("z" * 11, 5, 15)])
        clip = touch(tmp_path / "train/yoga/-abc_DEF_000007_000017.mp4")
        dataset = open_dataset(tmp_path)
        assert dataset.heads["action"] == ("abseiling", "yoga")
        assert [len(dataset.splits[split]) for split in ("train", "validation", "test")] == [2, 1, 1]
        first = dataset.splits["train"][0]
        assert (first.media.path, first.start_s, first.stop_s, first.group) == (clip, 0.0, None, "-abc_DEF")
        assert dataset.splits["train"][1].media.path.name == "xxxxxxxxxxx_000000_000010.mp4"

    def test_order_of_the_published_classes_is_by_name(self, published: Path) -> None:
        names = (published / "label_maps/k400_label_map.txt").read_text().strip().split("\n")
        assert len(names) == 400
        assert names == sorted(names)

    @pytest.mark.parametrize(("row", "kind"), [
        (("a", "v2", 7, 7, "train", 0), "zero length"), (("a", "v2", 7, 2, "train", 0), "stop before start"),
        (("a", "v2", "", 2, "train", 0), "broken row"), (("a", "../v", 7, 9, "train", 0), "no such split or name of a "
                                                                                          "video"),
        (("a", "v1", 0, 10, "train", 0), "duplicate id"), (("a", "v1", 0, 10, "val", 0), "same id in two splits")])
    def test_faults(self, row: tuple[Any, ...], kind: str, tmp_path: Path) -> None:
        table(tmp_path / "train.csv", [self.HEADER, ("a", "v1", 0, 10, "train", 0), row])
        assert kinds(open_dataset(tmp_path)) == {kind: 1}


class TestFolders:
    def test_given_splits(self, tmp_path: Path) -> None:
        for name in ("train/b/1.mp4", "train/a/2.avi", "val/a/3.mp4", "train/c/notes.txt"):
            touch(tmp_path / name)
        dataset = open_dataset(tmp_path)
        assert dataset.heads["action"] == ("a", "b")
        assert [segment.id for segment in dataset.splits["train"]] == ["train/a/2.avi", "train/b/1.mp4"]
        assert [segment.labels["action"] for segment in dataset.splits["validation"]] == ["a"]
        assert kinds(dataset) == {"class without a recording": 1}

    def test_sense_projects(self, tmp_path: Path) -> None:
        for name in ("videos_train/wave/1.mp4", "videos_train/background/1b.mp4", "videos_valid/wave/2.mp4"):
            touch(tmp_path / name)
        (tmp_path / "project_config.json").write_text(json.dumps({"name": "p", "classes": {"wave": [], "nod": []}}))
        dataset = open_dataset(tmp_path)
        assert (dataset.name, dataset.background) == ("a sense project", "background")
        assert dataset.heads["action"] == ("background", "nod", "wave")
        assert {split: len(segments) for split, segments in dataset.splits.items()} == {"train": 2, "validation": 1}
        (tmp_path / "project_config.json").write_text(json.dumps({"classes": 5}))
        assert open_dataset(tmp_path).heads["action"] == ("background", "wave")

    def test_folders_of_frames(self, tmp_path: Path) -> None:
        picture(tmp_path / "push/v1/rgb/000000.png")
        picture(tmp_path / "push/v1/u/000000.png")
        picture(tmp_path / "pull/v2/frame1.jpg")
        dataset = open_dataset(tmp_path, rate=25)
        found = {segment.labels["action"]: (segment.media, segment.group)
                 for segments in dataset.splits.values() for segment in segments}
        assert found["push"][0].path == tmp_path / "push/v1/rgb"
        assert {group for _, group in found.values()} == {"v1", "v2"}
        assert {media.rate for media, _ in found.values()} == {25}

    def test_a_recording_is_never_split(self, tmp_path: Path) -> None:
        for label in ("cut", "stir", "pour"):
            for recording in range(10):
                for clip in range(3):
                    touch(tmp_path / label / f"kitchen{recording}_clip{clip}.mp4")
                touch(tmp_path / label / f"bench{recording}_000{recording}10_000020.mp4")
        dataset = open_dataset(tmp_path)
        train, validation = ({segment.group for segment in dataset.splits[split]} for split in ("train", "validation"))
        assert not train & validation
        assert train | validation == {f"{place}{i}" for place in ("kitchen", "bench") for i in range(10)}
        for split in ("train", "validation"):
            assert {segment.labels["action"] for segment in dataset.splits[split]} == {"cut", "stir", "pour"}

    def test_the_split_depends_on_names_only(self) -> None:
        pairs = [(label, f"{label}{i % 7}") for label in "abc" for i in range(20)] + [("a", "alone"), ("d", "once")]
        expected = folders.choose_validation(pairs)
        for seed in range(5):
            assert folders.choose_validation(random.Random(seed).sample(pairs, len(pairs))) == expected
        assert "once" not in expected  # a class with one recording is for training

    @pytest.mark.parametrize("groups", [1, 2, 3, 5, 50])
    def test_shares(self, groups: int) -> None:
        held = folders.choose_validation([("a", f"g{i}") for i in range(groups)])
        assert len(held) == min(max(1, round(0.2 * groups)), groups - 1)


class TestEgoGestAR:
    def test_as_published(self, shared: Path) -> None:
        dataset = open_dataset(shared / "data" / "egogestar")
        assert len(dataset.splits["train"]) == 275
        assert {segment.group for segment in dataset.splits["train"]} == {"1", "2", "3", "4"}
        assert {segment.kind for segment in dataset.splits["train"]} == {"head", "history"}
        assert dataset.background == "background"
        assert dataset.mirrored["gesture"]["left"] == "right"
        assert dataset.mirrored["gesture"]["circlecc"] == ""
        assert "up" not in dataset.mirrored["gesture"]

    def test_a_small_one(self, tmp_path: Path) -> None:
        table(tmp_path / "manifest.csv", [("file", "label", "source", "fold"), ("clips/b.mp4", "wave", "head", 2),
                                          ("clips/a.mp4", "unclassified", "head", 2)])
        for name in "ab":
            touch(tmp_path / f"clips/{name}.mp4")
        dataset = open_dataset(tmp_path)
        assert kinds(dataset) == {"label outside the list": 1}
        assert (only(dataset).group, only(dataset).labels["gesture"]) == ("2", "background")


class TestOpening:
    @pytest.mark.parametrize("kind", list(DATASET_READERS))
    def test_an_empty_folder_says_what_was_looked_for(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="with nothing; wanted "):
            open_dataset(tmp_path, kind)

    def test_a_reader_is_one_file_and_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "toy_reader.py").write_text("""
from engines.datasets import tables
from engines.datasets.base import Media, Segment

def recognise(folder):
    return "toy.txt" if (folder / "toy.txt").is_file() else ""

def read(folder, options):
    builder = tables.DatasetBuilder({"action": ["jump"]})
    for name in tables.read_lines(folder / "toy.txt"):
        builder.add("train", Segment(name, Media(options.media / name), labels={"action": "jump"}))
    return builder.build("Toy")

READERS = {"toy": tables.Reader(recognise, read, "toy.txt")}
""")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(DATASET_READERS, "toy", "toy_reader")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "toy.txt").write_text("1.mp4\n")
        for kind in ("auto", "toy"):
            dataset = open_dataset(tmp_path / "data", kind)
            assert (dataset.name, dataset.found) == ("Toy", "toy.txt")
            assert only(dataset).media.path == tmp_path / "data" / "1.mp4"

    def test_nothing_known(self, tmp_path: Path) -> None:
        touch(tmp_path / "notes.txt")
        with pytest.raises(DatasetError) as caught:
            open_dataset(tmp_path)
        assert "notes.txt" in caught.value.got
        for told in ("EPIC_100_train.csv", "labels.json", "Diving48", "youtube_id", "jester-v1", "manifest.csv"):
            assert told in caught.value.wanted

    def test_wrong_use(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such folder"):
            open_dataset(tmp_path / "nowhere")
        with pytest.raises(UsageError, match="kind 'epik'"):
            open_dataset(tmp_path, "epik")
        with pytest.raises(UsageError, match="no such folder"):
            open_dataset(tmp_path, media=tmp_path / "nowhere")

    def test_annotations_may_lie_deeper_and_media_elsewhere(self, tmp_path: Path) -> None:
        epic_folder(tmp_path / "data/annotations", epic_row())
        video = touch(tmp_path / "disk/P01/videos/P01_01.MP4")
        dataset = open_dataset(tmp_path / "data", media=tmp_path / "disk")
        assert only(dataset).media.path == video
        assert dataset.found == "EPIC_100_train.csv"

    @pytest.mark.parametrize(("name", "content", "told"), [
        ("EPIC_100_train.csv", b"narration_id,video_id\nP01_01_0,P01_01\n", "without the columns participant_id"),
        ("EPIC_100_train.csv", ",".join(EPIC_COLUMNS).encode() + b'\nP01_01_0,"P01\n', "broken near line"),
        ("EPIC_100_train.csv", ",".join(EPIC_COLUMNS).encode() + b"\nP01_01_0,P01\n", "row 2 has fewer fields"),
        ("EPIC_100_train.csv", "narration_id,é\n".encode("latin-1"), "byte 13 is no UTF-8"),
        ("EPIC_100_verb_classes.csv", b"id,key\n0,take\n2,put\n", "not numbered 0 to 1"),
        ("EPIC_100_verb_classes.csv", b"id,key\n0,take\n1,take\n", "names a class twice"),
        ("EPIC_100_video_info.csv", b"video_id,duration,fps\nP01_01,x,60\n", "could not convert"),
        ("EPIC_100_tail_verbs.csv", b"verb\n99\n", "numbers of no class"),
        ("EPIC_100_train.csv", ",".join(EPIC_COLUMNS).encode() + b"\n", "without one usable item"),
    ])
    def test_files_that_cannot_be_understood(self, name: str, content: bytes, told: str, tmp_path: Path) -> None:
        folder = epic_folder(tmp_path, epic_row())
        (folder / name).write_bytes(content)
        with pytest.raises(DatasetError) as caught:
            open_dataset(folder)
        assert told in str(caught.value)

    @pytest.mark.parametrize("text", ['[{"id": "7", "templ', "[" * 100_000], ids=["cut off", "deep"])
    def test_json_that_ends_early(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "labels.json").write_text('{"a": "0", "b": "1"}')
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(DatasetError, match=r"train\.json, which is no JSON"):
            open_dataset(tmp_path)

    def test_a_byte_order_mark_is_no_column(self, tmp_path: Path) -> None:
        folder = epic_folder(tmp_path, epic_row())
        path = folder / "EPIC_100_train.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert only(open_dataset(folder)).id == "P01_01_0"


class TestStrangersFolders:
    """Folders as people have them: with what operating systems, spreadsheets and other programs leave in them."""

    @pytest.fixture
    def classes(self, tmp_path: Path) -> Path:
        for label in ("wave", "pour"):
            for k in range(1, 11):
                touch(tmp_path / label / f"{k}.mp4")
        return tmp_path

    @pytest.mark.parametrize(("name", "data"), [
        ("._train.csv", b"\0\x05\x16\x07 left by a Mac"), ("notes.csv", "Größe;Ort\n".encode("latin-1")),
        ("train.csv", b"id,label\nx1,wave\nx2,pour\n"), ("Thumbs.db", b"\xd0\xcf\x11\xe0"), (".DS_Store", b"Bud1"),
        ("__MACOSX/wave/._1.mp4", b"x"), ("wave/._1.mp4", b"x"), ("$RECYCLE.BIN/a.mp4", b"x")])
    def test_files_that_are_not_ours_change_nothing(self, classes: Path, name: str, data: bytes) -> None:
        wanted = open_dataset(classes)
        touch(classes / name).write_bytes(data)
        found = open_dataset(classes)
        assert (found.heads, found.splits, found.problems) == (wanted.heads, wanted.splits, wanted.problems)

    def test_a_train_csv_about_the_recordings_here_counts(self, classes: Path) -> None:
        (classes / "train.csv").write_text("id,label\n1,wave\n2,pour\n")
        for k in (1, 2):
            touch(classes / "videos" / f"{k}.mp4")
        assert open_dataset(classes).found == "train.csv"

    @pytest.mark.parametrize(("delimiter", "encoding"), [(";", "utf-8"), ("\t", "utf-8"), (",", "utf-8-sig"),
                                                         ("\t", "utf-16")])
    def test_tables_as_spreadsheets_of_other_countries_save_them(self, tmp_path: Path, delimiter: str,
                                                                 encoding: str) -> None:
        folder = epic_folder(tmp_path, epic_row())
        wanted = open_dataset(folder)
        for path in folder.glob("*.csv"):
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            with path.open("w", encoding=encoding, newline="") as file:
                csv.writer(file, delimiter=delimiter).writerows(rows)
        assert open_dataset(folder).splits == wanted.splits

    def test_what_is_ignored_is_said(self, classes: Path) -> None:
        touch(classes / "wave" / "notes.txt")
        touch(classes / "stray.mp4")
        (classes / "pour" / "empty").mkdir()
        touch(classes / "later" / "person0" / "1.mp4")
        problems = {(problem.kind, problem.where) for problem in open_dataset(classes).problems}
        assert problems == {("ignored", "wave/notes.txt"), ("ignored", "stray.mp4"), ("ignored", "pour/empty"),
                            ("class without a recording", "later")}

    def test_one_folder_too_deep_is_explained(self, tmp_path: Path) -> None:
        touch(tmp_path / "left" / "person0" / "x.mp4")
        with pytest.raises(DatasetError) as error:
            open_dataset(tmp_path)
        assert "its videos lie at left/person0/x.mp4" in error.value.got
        assert "class/video.mp4" in error.value.wanted

    def test_two_forms_of_one_name_are_one_class(self, tmp_path: Path) -> None:
        for k, name in enumerate(("u\u0308ber", "über", "plain ")):
            for number in range(5):
                touch(tmp_path / name / f"{k}{number}.mp4")
        assert open_dataset(tmp_path).heads == {"action": ("plain", "über")}

    @pytest.mark.parametrize("name", ["a.MTS", "a.wmv", "a.m4v", "a.TS", "a.3gp"])
    def test_endings_are_those_of_live_use(self, tmp_path: Path, name: str) -> None:
        for label in ("wave", "pour"):
            touch(tmp_path / label / name)
            touch(tmp_path / label / f"b{name}")
        dataset = open_dataset(tmp_path)
        assert sum(map(len, dataset.splits.values())) == 4
        assert dataset.problems == ()
