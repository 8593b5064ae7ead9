"""Which messages come in: by name and address, up to a number of cameras, within quotas that fill by the second."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from stream.service.config import Config
from stream.service.ingress.admission import FROZEN_AFTER_S, Admission, Refused
from stream.service.ingress.scheduler import FrameScheduler
from stream.wire import Message


def admission(camera: Any = (), **receive: Any) -> Admission:
    return Admission(Config.model_validate({"receive": receive, "camera": camera}), FrameScheduler())


def message(name: str | None = "a", payload: bytes = b"12345") -> Message:
    return Message("imagezmq", name, payload)


@pytest.mark.parametrize(("sent_name", "own_name", "peer", "name"), [
    ("a", None, "10.0.0.1", "a"), (None, None, "10.0.0.7", "by address"), (None, None, "10.0.0.1", "imagezmq@10.0.0.1"),
    (None, None, "", "imagezmq@local"), ("a", "own", "10.0.0.1", "own"),
])
def test_whose_a_message_is(sent_name: str | None, own_name: str | None, peer: str, name: str) -> None:
    target = admission([{"name": "by address", "address": "10.0.0.7"}])
    assert target.admit(message(sent_name), own_name, peer, 1.0).name == name


@pytest.mark.parametrize(("rate", "seconds", "sent", "least", "most"), [(5.0, 10, 400, 54, 55), (5.0, 10, 40, 40, 40)])
def test_quotas_fill_by_the_second(rate: float, seconds: int, sent: int, least: int, most: int) -> None:
    target, passed = admission(max_frames_per_s=rate), 0
    for k in range(sent):
        with suppress(Refused):
            target.admit(message(), None, "", 1.0 + k * seconds / sent)
            passed += 1
    assert least <= passed <= most


def test_bytes_have_a_quota_of_their_own() -> None:
    target = admission(max_mb_per_s=0.001)
    target.admit(message(payload=bytes(900)), None, "", 1.0)
    with pytest.raises(Refused, match="faster than its quota"):
        target.admit(message(payload=bytes(900)), None, "", 1.1)
    target.admit(message(payload=bytes(900)), None, "", 2.0)
    target.admit(message("b", payload=bytes(900)), None, "", 1.1)  # another camera's is its own


def test_the_same_picture_for_long_is_a_frozen_camera() -> None:
    target = admission()
    session = target.admit(message(), None, "", 1.0)
    session.present = True
    target.admit(message(), None, "", 2.0 + FROZEN_AFTER_S)
    assert session.frozen(2.0 + FROZEN_AFTER_S)
    target.admit(message(payload=b"other"), None, "", 3.0 + FROZEN_AFTER_S)
    assert not session.frozen(3.0 + FROZEN_AFTER_S)
