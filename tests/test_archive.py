"""An archive is labelled as `gatestream run` labels each of its videos; what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import UsageError
from stream.archive.label import find_recordings
from stream.commands.cli import main


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_an_archive_is_labelled_as_each_video_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs Ray (gatestream[cluster])")
    from pyarrow import parquet

    archive, out = tmp_path / "archive", tmp_path / "events.parquet"
    (archive / "deep").mkdir(parents=True)
    wanted = []
    for name, seed in (("a.frames", 3), ("deep/b.frames", 4)):
        path = archive / name
        room = f"sim://gestures?seed={seed}&seconds=8&realtime=0&rate=15&width=160&height=120"
        assert main(["record", room, "--out", str(path)]) == 0
        assert main(["run", str(path), "--json", str(tmp_path / "said")]) == 0
        said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
        wanted += [(str(path), one["label"], one["started_at"], one["ended_at"], one["score"]) for one in said
                   if one["type"] == "event" and not one["open"]]
    assert wanted
    (archive / "broken.mp4").write_bytes(b"nothing")
    (archive / "notes.txt").write_text("no video")
    assert main(["label", str(archive), "--out", str(out), "--workers", "1"]) == 0
    assert f"{len(wanted)} events in 3 recordings, 1 of them unreadable" in capsys.readouterr().out
    rows = parquet.read_table(out).to_pylist()
    assert [tuple(row[key] for key in ("path", "label", "started_at", "ended_at", "score"))
            for row in rows if row["label"]] == wanted
    [failed] = [row for row in rows if row["error"]]
    assert failed["path"] == str(archive / "broken.mp4")


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no video"):
        find_recordings(tmp_path)
