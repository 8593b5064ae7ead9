"""Which messages come in: by name and address, up to a number of cameras, within quotas that fill by the second."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from stream.frame import Camera, Gap
from stream.service.config import Config
from stream.service.ingress.admission import (
    FROZEN_AFTER_S,
    NEW_NAMES,
    NOTICE_S,
    NOTICES,
    REFUSED_S,
    Admission,
    Connection,
    Refused,
)
from stream.service.ingress.scheduler import FrameScheduler
from stream.wire.messages import Message

SENDER = Connection()


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
    assert target.admit(message(sent_name), own_name, Connection(peer), 1.0).name == name


@pytest.mark.parametrize(("rate", "seconds", "sent", "least", "most"), [(5.0, 10, 400, 54, 55), (5.0, 10, 40, 40, 40)])
def test_quotas_fill_by_the_second(rate: float, seconds: int, sent: int, least: int, most: int) -> None:
    target, passed = admission(max_frames_per_s=rate), 0
    for k in range(sent):
        with suppress(Refused):
            target.admit(message(), None, SENDER, 1.0 + k * seconds / sent)
            passed += 1
    assert least <= passed <= most


def test_bytes_have_a_quota_of_their_own() -> None:
    target = admission(max_mb_per_s=0.001)
    target.admit(message(payload=bytes(900)), None, SENDER, 1.0)
    with pytest.raises(Refused, match="faster than its quota"):
        target.admit(message(payload=bytes(900)), None, SENDER, 1.1)
    target.admit(message(payload=bytes(900)), None, SENDER, 2.0)
    target.admit(message("b", payload=bytes(900)), None, SENDER, 1.1)  # another camera's is its own


def test_the_same_picture_for_long_is_a_frozen_camera() -> None:
    target = admission()
    session = target.admit(message(), None, SENDER, 1.0)
    session.present = True
    target.admit(message(), None, SENDER, 2.0 + FROZEN_AFTER_S)
    assert session.frozen(2.0 + FROZEN_AFTER_S)
    target.admit(message(payload=b"other"), None, SENDER, 3.0 + FROZEN_AFTER_S)
    assert not session.frozen(3.0 + FROZEN_AFTER_S)


@pytest.mark.parametrize(("peer", "gone", "after_s", "comes"), [
    ("10.0.0.1", False, 1.0, False), ("10.0.0.1", False, 6.0, True), ("10.0.0.1", True, 0.01, True),
    ("10.0.0.2", False, 6.0, False), ("10.0.0.2", False, 21.0, True), ("10.0.0.2", True, 0.01, True),
])
def test_a_camera_has_one_sender_until_it_is_silent_or_gone(peer: str, gone: bool, after_s: float, comes: bool) -> None:
    target, first, second = admission(), Connection("10.0.0.1"), Connection(peer)
    session = target.admit(message(), None, first, 100.0)
    session.join()
    first.open = not gone
    if not comes:
        with pytest.raises(Refused, match="a second sender of camera 'a'"):
            target.admit(message(), None, second, 100.0 + after_s)
    assert target.admit(message(), None, second if comes else first, 100.0 + after_s) is session


def test_senders_without_names_are_a_camera_each() -> None:
    target, names = admission(), []
    senders = [Connection("10.0.0.1") for _ in range(3)]
    for k in range(6):
        session = target.admit(message(None), None, senders[k % 3], 1.0 + k)
        session.present = True
        names.append(session.name)
    assert names == 2 * ["imagezmq@10.0.0.1", "imagezmq@10.0.0.1-2", "imagezmq@10.0.0.1-3"]
    one_of_several = Message("netgear", None, b"1", port="5567")
    assert target.admit(one_of_several, None, Connection("10.0.0.1"), 1.0).name == "netgear@10.0.0.1:5567"


def test_new_names_are_limited_for_each_connection() -> None:
    target, restless = admission([{"name": "known"}], cameras=256), Connection()
    target.session("known")
    for k in range(NEW_NAMES):
        target.admit(message(str(k)), None, restless, 1.0)
    for k in range(500):
        with pytest.raises(Refused, match="another camera over the same connection"):
            target.admit(message(f"more {k}"), None, restless, 1.0)
    assert target.admit(message("known"), None, restless, 1.0).name == "known"
    assert target.admit(message("newcomer"), None, Connection(), 1.0).name == "newcomer"


def test_a_key_is_for_the_camera_of_its_name_while_it_is_allowed() -> None:
    keys = {"k3": "cell-3"}
    target = Admission(Config(), FrameScheduler(), keys.get)
    sender = Connection(key="k3")
    assert target.admit(message("cell-3"), None, sender, 1.0).name == "cell-3"
    assert target.admit(message(None), None, sender, 1.0).name == "cell-3"
    with pytest.raises(Refused, match="camera 'cell-4' with the key of 'cell-3'"):
        target.admit(message("cell-4"), None, sender, 1.0)
    del keys["k3"]
    with pytest.raises(Refused, match="no longer allowed"):
        target.admit(message("cell-3"), None, sender, 1.0)
    assert target.admit(message("cell-9"), "own", Connection(), 1.0).name == "own"  # we opened it ourselves


def test_a_camera_whose_frames_end_engines_is_refused_for_longer_each_time() -> None:
    target, now = admission(), 100.0
    for name in "ab":
        target.admit(message(name), None, SENDER, now)
    assert target.count_crash({"a", "b"}, now) == target.count_crash({"a", "b"}, now) == []  # which one is not known
    for pause_s in REFUSED_S:
        assert target.count_crash({"a"}, now) == ["a"]
        with pytest.raises(Refused, match="ended the engine's process"):
            target.admit(message(), None, SENDER, now + pause_s - 0.1)
        now += pause_s + 1.0
        for name in "ab":
            target.admit(message(name), None, SENDER, now)
    assert target.count_crash({"b"}, now + 3600.0) == []  # long ago


@pytest.mark.parametrize("action", ["reconnected", "reset"])
def test_a_camera_that_comes_and_goes_without_end_does_not_fill_the_log(action: str, caplog: pytest.LogCaptureFixture
                                                                        ) -> None:
    caplog.set_level("INFO", "gatestream.service")
    session = admission().session("a")
    gap = Gap("a", 0.0, 1.0, action)
    reported = sum(session.may_report(gap, k / 10) for k in range(1000))  # in 100 s
    assert reported == pytest.approx(NOTICES + 100 / NOTICE_S, abs=1)
    assert session.gaps[action] == 1000
    assert caplog.text.count("camera a: a gap of 1.0 s (reset)") == (reported if action == "reset" else 0)
    assert all(session.may_report(Camera("a", 0.0, "left"), 200.0 + NOTICE_S * k) for k in range(100))
