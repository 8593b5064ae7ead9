"""The service's guide: the table of keys is the configuration's, and the sample is a configuration."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stream.service.config import Config, parse_config
from stream.service.config_table import key_table, renew_table

README = Path(__file__).parent.parent / "stream" / "service" / "README.md"


def test_the_table_of_keys_is_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == renew_table(text), f"run: python -m stream.service.config_table {README}"


def test_the_table_has_every_key_with_a_description() -> None:
    def keys(table: object, prefix: str = "") -> set[str]:
        if not isinstance(table, dict):
            return {prefix}
        return set().union(*(keys(value, f"{prefix}.{name}".strip(".")) for name, value in table.items()))

    rows = [line.strip("| ").split(" | ") for line in key_table().splitlines()[2:]]
    listed = {row[0].strip("`") for row in rows if row[0].startswith("`")}
    assert keys(Config().model_dump()) - {"gate", "camera", "clips", "results.mqtt", "results.webhook"} <= listed
    assert {"camera.crop", "clips.keep_mb", "gate.f1", "results.mqtt.topic"} <= listed
    assert all(row[-1].strip() for row in rows)


def test_the_sample_is_a_configuration() -> None:
    [sample] = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    config = parse_config(sample)
    assert [camera.name for camera in config.camera] == ["cell-3", "door"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_sample_unit(tmp_path: Path) -> None:
    [unit] = re.findall(r"```ini\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert "Type=notify\n" in unit
    file = tmp_path / "gatestream.service"
    file.write_text(unit.replace("/opt/gatestream/bin/gatestream", sys.executable)
                    .replace("User=gatestream", f"User={getpass.getuser()}"))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
