"""`gatestream data`: what a check finds, and a rendered dataset that is read like EPIC-KITCHENS-100."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest

from engines.datasets import Dataset, Media, open_dataset
from engines.datasets.check import Report, check, inspect_recording
from engines.datasets.decode import decode_segment
from engines.datasets.epic import frame_number
from engines.datasets.kinds import DATASET_READERS, DatasetKind
from engines.datasets.mirror import mirror_labels
from engines.datasets.render import NOUNS, VERBS, RenderedDataset, render
from engines.errors import SinkError, UsageError
from engines.synthetic import LABELS
from stream.commands.cli import main

SIZE_HW = (48, 64)


def video(path: Path, count: int = 50, rate: float = 25.0, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, SIZE_HW[::-1])
    assert writer.isOpened()
    for k in range(count):
        writer.write(np.full((*SIZE_HW, 3), (grey + k) % 256, np.uint8))
    writer.release()
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two classes of three two-second recordings, each in another grey."""
    for i, name in enumerate(("a/1", "a/2", "a/3", "b/1", "b/2", "b/3")):
        video(tmp_path / "data/train" / f"{name}x{i}.mp4", grey=30 * i)
    return tmp_path / "data"


def found(report: Report) -> dict[str, int]:
    return {kind: len(problems) for kind, problems in report.groups().items()}


def changed(dataset: Dataset, media: Media, start_s: float = 0.0, stop_s: float | None = None) -> Dataset:
    """The dataset with its first segment's recording or times replaced."""
    first, *others = dataset.splits["train"]
    return replace(dataset, splits={"train": [replace(first, media=media, start_s=start_s, stop_s=stop_s), *others]})


class TestCheck:
    def test_nothing_wrong(self, good: Path) -> None:
        report = check(open_dataset(good), shorter_than_s=2.0)
        assert found(report) == {}
        assert (report.recordings, report.readable, report.unusable) == (6, 6, frozenset())
        assert report.seconds == pytest.approx(12.0, abs=0.1)
        assert report.counts == {"train": {"action": {"a": 3, "b": 3}}}

    def test_recordings_that_cannot_be_used(self, good: Path) -> None:
        paths = sorted(good.rglob("*.mp4"))
        dataset = open_dataset(good)
        paths[0].unlink()
        paths[1].write_bytes(b"")
        paths[2].write_text("no video\n" * 500)
        report = check(dataset)
        assert found(report) == {"unreadable": 2, "missing": 1}
        assert report.unusable == {f"train/a/{path.name}" for path in paths[:3]}
        assert str(paths[1]) in report.groups()["unreadable"][0].detail

    def test_a_recording_cut_off(self, good: Path, tmp_path: Path) -> None:
        """Its index, moved to the front as streaming servers do, still tells the whole length."""
        whole = video(tmp_path / "whole.mp4", 200).read_bytes()
        half = good / "train/a/half.mp4"
        half.write_bytes(faststart(whole)[:len(whole) // 2])
        report = check(open_dataset(good))
        ((problem,),) = report.groups().values()
        assert (problem.kind, problem.where) == ("damaged", "half.mp4")
        assert "states 8.00 s" in problem.detail
        assert not report.unusable  # half of it can be used

    def test_damage_in_the_middle(self, good: Path) -> None:
        path = good / "train/a/damaged.mp4"
        data = bytearray(video(path, 200).read_bytes())
        first, end = data.find(b"mdat"), data.rfind(b"moov")  # between them: the frames
        middle, length = (first + end) // 2, (end - first) // 10
        data[middle:middle + length] = bytes(length)
        path.write_bytes(data)
        dataset = open_dataset(good)
        assert found(check(dataset)) == {}  # first and last frame are fine
        groups = check(dataset, deep=True).groups()
        assert set(groups) == {"damaged", "look at"}  # the clip is of one colour
        (problem,) = groups["damaged"]
        assert (problem.kind, problem.where) == ("damaged", "damaged.mp4")
        assert 2 < float(problem.detail.split("after ")[1].split()[0]) < 6

    @pytest.mark.parametrize("frames", [True, False])
    @pytest.mark.parametrize(("changing", "words"), [
        (lambda k: 0, "the same picture, one colour"), (lambda k: 50 * (np.arange(64) // 16), "the same picture"),
        (lambda k: k, ""), (lambda k: 0 if k < 190 else k, "")], ids=["black", "one picture", "fading", "at the end"])
    def test_one_picture_throughout_is_seen_at_a_few_places(self, tmp_path: Path, frames: bool, changing: Any,
                                                            words: str) -> None:
        path = tmp_path / "frames" if frames else tmp_path / "a.mp4"
        pictures = [np.zeros((*SIZE_HW, 3), np.uint8) + np.uint8(changing(k))[..., None] for k in range(200)]
        if frames:
            path.mkdir()
            for k, image in enumerate(pictures):
                cv2.imwrite(str(path / f"{k:03d}.png"), image)
        else:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, SIZE_HW[::-1])
            for image in pictures:
                writer.write(image)
            writer.release()
        notes = inspect_recording(Media(path, 25.0 if frames else None, None)).notes
        assert [note.partition("places it shows ")[2] for note in notes] == [words] * bool(words)

    @pytest.mark.parametrize(("start_s", "stop_s", "kinds"), [
        (0.5, 1.0, {"short": 1}), (1.5, None, {"short": 1}), (0.0, 3.0, {"ends after the end": 1}),
        (7.0, 9.0, {"starts after the end": 1}), (0.0, 2.05, {}), (0.0, 1.0, {})])
    def test_lengths(self, good: Path, start_s: float, stop_s: float | None, kinds: dict[str, int]) -> None:
        dataset = open_dataset(good)
        media = dataset.splits["train"][0].media
        assert found(check(changed(dataset, media, start_s, stop_s), shorter_than_s=1.0)) == kinds

    @pytest.mark.parametrize(("rate", "seconds", "kinds"), [
        (25.1, 2.1, {}), (29.97, 2.0, {"rate disagrees": 1}), (25.0, 5.0, {"duration disagrees": 1}),
        (None, None, {})])
    def test_what_annotations_state(self, good: Path, rate: float | None, seconds: float | None,
                                    kinds: dict[str, int]) -> None:
        dataset = open_dataset(good)
        media = replace(dataset.splits["train"][0].media, stated_rate=rate, stated_s=seconds)
        assert found(check(changed(dataset, media))) == kinds

    @pytest.mark.parametrize(("copy", "kinds"), [
        ("train/b/copy.mp4", {"same pictures in two classes": 1}), ("train/a/copy.mp4", {"same pictures twice": 1}),
        ("val/a/copy.mp4", {"same pictures in two splits": 1, "class missing in a split": 1})])
    def test_same_files(self, copy: str, kinds: dict[str, int], good: Path) -> None:
        (good / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good / "train/a/1x0.mp4", good / copy)
        assert found(check(open_dataset(good))) == kinds

    def test_one_recording_under_two_labels(self, good: Path) -> None:
        dataset = open_dataset(good)
        media = dataset.splits["train"][-1].media
        assert found(check(changed(dataset, media))) == {"same pictures in two classes": 1}
        # at other times it is no contradiction: segments may overlap
        assert found(check(changed(dataset, media, 0.5, 1.5))) == {}

    def test_classes(self, good: Path) -> None:
        video(good / "train/c/kitchen_clip1.mp4", grey=200)
        video(good / "val/c/kitchen_clip2.mp4", grey=220)
        video(good / "val/a/1x0.mp4", grey=240)  # this name alone tells nothing
        report = check(open_dataset(good))
        assert found(report) == {"class with one clip": 1, "recording in two splits": 1,
                                 "class missing in a split": 1}
        assert report.groups()["class with one clip"][0].where == "action c"

    def test_readers_problems_come_along(self, good: Path) -> None:
        (good / "train/empty").mkdir()
        assert found(check(open_dataset(good))) == {"class without a recording": 1}

    def test_folders_of_frames(self, tmp_path: Path) -> None:
        for i in range(1, 21):
            assert cv2.imwrite(str(tmp_path / f"{i:05d}.png"), np.zeros((*SIZE_HW, 3), np.uint8))
        media = Media(tmp_path, 10.0, None)
        found = inspect_recording(media)
        assert (found.seconds, found.size_hw, found.fault) == (2.0, SIZE_HW, "")
        (tmp_path / "00007.png").write_bytes(b"no picture")
        assert inspect_recording(media).fault == ""
        assert inspect_recording(media, deep=True).fault == "damaged"
        assert inspect_recording(Media(tmp_path / "nowhere", 10.0)).fault == "missing"
        (tmp_path / "none").mkdir()
        assert inspect_recording(Media(tmp_path / "none", 10.0)).fault == "unreadable"


def faststart(data: bytes) -> bytes:
    """An MP4 with its index (moov) before its frames (mdat), and the offsets in it corrected."""
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at:at + 4], "big")
        boxes.append(data[at:at + size])
        at += size
    moov = bytearray(next(box for box in boxes if box[4:8] == b"moov"))
    place = moov.find(b"stco")
    for i in range(int.from_bytes(moov[place + 8:place + 12], "big")):
        entry = slice(place + 12 + 4 * i, place + 16 + 4 * i)
        moov[entry] = (int.from_bytes(moov[entry], "big") + len(moov)).to_bytes(4, "big")
    others = [box for box in boxes if box[4:8] != b"moov"]
    return others[0] + bytes(moov) + b"".join(others[1:])


class TestCommand:
    def test_kinds_are_those_of_the_readers(self) -> None:
        assert get_args(DatasetKind) == ("auto", *DATASET_READERS)
        assert all(kind in importlib.import_module(module).READERS for kind, module in DATASET_READERS.items())

    @pytest.mark.parametrize(("strict", "fault", "code"), [([], False, 0), (["--strict"], False, 0), ([], True, 0),
                                                          (["--strict"], True, 1)])
    def test_exit_codes(self, strict: list[str], fault: bool, code: int, good: Path,
                        capfd: pytest.CaptureFixture[str]) -> None:
        if fault:
            (good / "train/a/broken.mp4").write_bytes(b"x")
        assert main(["data", "check", str(good), *strict]) == code
        out = capfd.readouterr().out
        assert out.startswith("class folders, recognised by train/<class>\n  train: ")
        assert ("broken.mp4" in out) == fault
        assert ("nothing wrong" in out) != fault

    def test_json(self, good: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "check", str(good), "--seconds", "3", "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert told["splits"] == {"train": 6}
        assert told["problems"]["short"]["count"] == 6

    def test_long_lists_are_cut(self, good: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "check", str(good), "--seconds", "3"]) == 0
        assert "short: 6\n" in (out := capfd.readouterr().out)
        assert "... and 3 more" in out

    def test_the_models_clip_says_what_is_short(self, good: Path, capfd: pytest.CaptureFixture[str]) -> None:
        import engines

        contract = engines.load("gesture").contract
        assert main(["data", "check", str(good), "--model", "gesture", "--json"]) == 0
        short = json.loads(capfd.readouterr().out)["problems"].get("short", {"count": 0})["count"]
        assert short == (6 if contract.clip_frames / contract.frame_rate > 2.05 else 0)

    @pytest.mark.parametrize(("arguments", "code", "told"), [
        (["check", "nowhere"], 2, "no such folder"), (["check", "{empty}"], 1, "with nothing; wanted"),
        (["check", "{empty}", "--kind", "epik"], 2, "epik"),
        (["render", "{empty}/x"], 2, "--hours and --clips"),
        (["render", "{empty}/x", "--clips", "2", "--hours", "1"], 2, "--hours and --clips"),
        (["render", "{empty}/x", "--clips", "2", "--size", "big"], 2, "--size big")])
    def test_faults(self, arguments: list[str], code: int, told: str, tmp_path: Path,
                    capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["data", *(argument.format(empty=tmp_path) for argument in arguments)]) == code
        (line,) = capfd.readouterr().err.splitlines()
        assert told in line


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RenderedDataset]:
    out = tmp_path_factory.mktemp("rendered") / "out"
    return out, render(out, clips=6, seed=3, size_hw=(72, 128), rate=10.0, video_s=20.0)


class TestRendered:
    def test_read_like_the_real_one(self, rendered: tuple[Path, RenderedDataset]) -> None:
        out, made = rendered
        dataset = open_dataset(out)
        assert dataset.name == "EPIC-KITCHENS-100"
        assert dataset.heads == {"verb": tuple(VERBS.values()), "noun": NOUNS}
        assert sum(map(len, dataset.splits.values())) == made.segments >= 6
        assert all(dataset.splits[split] for split in ("train", "validation"))
        people = [{segment.group for segment in dataset.splits[split]} for split in ("train", "validation")]
        assert not people[0] & people[1]
        report = check(dataset, deep=True)
        assert set(found(report)) <= {"class with one clip"}  # times, rates, durations and frames agree
        assert report.readable == made.videos
        assert report.seconds == pytest.approx(made.seconds, abs=0.05)

    def test_labels_are_what_the_pictures_show(self, rendered: tuple[Path, RenderedDataset]) -> None:
        """Each video shows the performance and the place that its rows tell of, at the times they tell."""
        from engines.datasets.render import _simulate

        dataset = open_dataset(rendered[0])
        for number in (0, 1):
            video, narrations, simulation = _simulate(3, number, (72, 128), 10.0, 20.0)
            segments = [segment for found in dataset.splits.values() for segment in found
                        if segment.media.path.stem == video.video_id]
            assert [(one.verb, one.noun) for one in narrations] == \
                [(segment.labels["verb"], segment.labels["noun"]) for segment in segments]
            for one, segment in zip(narrations, segments, strict=True):
                assert (segment.start_s, segment.stop_s) == pytest.approx((one.start_s, one.stop_s), abs=0.006)
                for k, image in enumerate(decode_segment(segment, 10.0, (72, 128)), int(np.ceil(segment.start_s * 10))):
                    drawn = simulation.frame(k)
                    assert np.abs(image.astype(int) - drawn).mean() < 12  # what compression leaves of the noise
                    assert simulation.script.pose(k / 10).tip_xy is not None

    def test_the_same_seed_gives_the_same_files(self, rendered: tuple[Path, RenderedDataset], tmp_path: Path) -> None:
        out, _ = rendered
        render(tmp_path / "again", clips=6, seed=3, size_hw=(72, 128), rate=10.0, video_s=20.0)
        files = sorted(path.relative_to(out) for path in out.rglob("*.*"))
        assert files
        for name in files:
            assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    def test_hours(self, tmp_path: Path) -> None:
        made = render(tmp_path, hours=16 / 3600, size_hw=(48, 64), rate=5.0, video_s=6.0)
        assert 16 <= made.seconds < 16 + 6

    def test_every_gesture_has_a_verb_and_flips_know_their_direction(self) -> None:
        assert tuple(VERBS) == LABELS
        assert mirror_labels(tuple(VERBS.values())) == {
            "swipe-left": "swipe-right", "swipe-right": "swipe-left", "circle-counterclockwise": "",
            "square-clockwise": ""}

    def test_places_that_will_not_do(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("keep me")
        with pytest.raises(UsageError, match="holds something"):
            render(tmp_path, clips=2)
        with pytest.raises(SinkError, match=r"notes\.txt"):
            render(tmp_path / "notes.txt" / "out", clips=2)
        with pytest.raises(UsageError, match=r"byte\\xff, a name that OpenCV cannot write"):
            render(tmp_path / os.fsdecode(b"byte\xff"), clips=2)

    def test_command(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out"
        assert main(["data", "render", str(out), "--clips", "2", "--size", "64x48", "--rate", "5",
                     "--video-seconds", "6"]) == 0
        assert capfd.readouterr().out.startswith(f"wrote {out}: ")
        assert main(["data", "check", str(out), "--kind", "epic"]) == 0

    def test_frame_numbers_follow_the_rule(self) -> None:
        assert (frame_number(0.0, "P01_01"), frame_number(1.0, "P01_01"), frame_number(1.0, "P01_101")) == (1, 60, 50)


