"""The service's guide: the table of keys is the configuration's, and the sample is a configuration."""

from __future__ import annotations

import re
from pathlib import Path

from stream.service.config import Config, key_table, parse_config, renew_table

README = Path(__file__).parent.parent / "stream" / "service" / "README.md"


def test_the_table_of_keys_is_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == renew_table(text), f"run: python -m stream.service.config {README}"


def test_the_table_has_every_key_with_a_description() -> None:
    def keys(table: object, prefix: str = "") -> set[str]:
        if not isinstance(table, dict):
            return {prefix}
        return set().union(*(keys(value, f"{prefix}.{name}".strip(".")) for name, value in table.items()))

    rows = [line.strip("| ").split(" | ") for line in key_table().splitlines()[2:]]
    listed = {row[0].strip("`") for row in rows if row[0].startswith("`")}
    assert keys(Config().model_dump()) - {"gate", "camera", "clips", "results.mqtt"} <= listed
    assert {"camera.crop", "clips.keep_mb", "gate.f1", "results.mqtt.topic"} <= listed
    assert all(row[-1].strip() for row in rows)


def test_the_sample_is_a_configuration() -> None:
    [sample] = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    config = parse_config(sample)
    assert [camera.name for camera in config.camera] == ["cell-3", "door"]
