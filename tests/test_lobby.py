"""The lobby: the newest message of each camera, turns for all, and every drop in its account."""

from __future__ import annotations

import pytest

from engines.errors import UsageError
from stream.service import link
from stream.service.lobby import OVERTAKEN, STALE, Lobby
from stream.service.receiver import BATCH, LEAST, UNDER_WAY_S, Pace
from stream.service.wire import Message

MESSAGE = Message("imagezmq", "a", b"12345")


def lobby(*cameras: str) -> Lobby:
    made = Lobby()
    for camera in cameras:
        made.open(camera)
    return made


def test_the_newest_message_wins_and_the_lost_are_told_of() -> None:
    target = lobby("a")
    for k in range(3):
        target.put("a", MESSAGE, captured_at=float(k), arrived_at=float(k))
    [guest] = target.take(8, 2.1, lambda _: 1.0)
    assert (guest.captured_at, guest.index, guest.lost) == (2.0, 2, 2)
    assert target.take(8, 2.1, lambda _: 1.0) == []
    account = target.accounts["a"]
    assert (account.received, account.taken, account.bytes, account.dropped[OVERTAKEN]) == (3, 1, 15, 2)
    target.put("a", MESSAGE, 3.0, 3.0)
    assert target.take(8, 3.0, lambda _: 1.0)[0].lost == 0


def test_what_waited_too_long_is_dropped_and_refusals_count_as_lost() -> None:
    target = lobby("a", "b")
    target.put("a", MESSAGE, 0.0, 0.0)
    target.put("b", MESSAGE, 0.9, 0.9)
    target.refuse("b", "quota")
    assert [(guest.camera, guest.lost) for guest in target.take(8, 1.0, lambda _: 0.5)] == [("b", 1)]
    assert target.accounts["a"].dropped == {STALE: 1}
    assert target.accounts["b"].dropped == {"quota": 1}
    assert target.accounts["b"].received == 2
    target.put("a", MESSAGE, 1.0, 1.0)
    assert target.take(8, 1.0, lambda _: 0.5)[0].lost == 1


def test_each_camera_has_its_own_patience() -> None:
    target = lobby("a", "b")
    for camera in "ab":
        target.put(camera, MESSAGE, 0.0, 0.0)
    assert [guest.camera for guest in target.take(8, 1.0, {"a": 2.0, "b": 0.5}.__getitem__)] == ["a"]
    assert target.accounts["b"].dropped == {STALE: 1}


def test_of_those_whose_turn_it_is_the_newest_is_first_and_nobody_waits_for_two_turns() -> None:
    target = lobby(*"abc")
    for k, camera in enumerate("abc"):
        target.put(camera, MESSAGE, float(k), float(k))
    order = []
    for k in range(3, 9):
        [guest] = target.take(1, float(k), lambda _: 10.0)
        order.append(guest.camera)
        target.put(guest.camera, MESSAGE, float(k), float(k))
    assert order[:3] == ["c", "b", "a"]
    assert sorted(order[3:]) == ["a", "b", "c"]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_under_overload_everyone_gets_the_same_share(most: int) -> None:
    cameras = [f"camera {k}" for k in range(10)]
    target = lobby(*cameras)
    for k in range(700):
        for i, camera in enumerate(cameras):
            if k % (1 + i % 2) == 0:  # every other camera is half as fast, and still faster than what is left for it
                target.put(camera, MESSAGE, float(k), float(k))
        assert len(target.take(most, float(k), lambda _: 10.0)) == most
    shares = [target.accounts[camera].taken for camera in cameras]
    if most <= 3:
        assert max(shares) - min(shares) <= 1
    assert sum(shares) == 700 * most


def test_a_camera_that_left_leaves_nothing() -> None:
    target = lobby("a")
    target.put("a", MESSAGE, 0.0, 0.0)
    target.close("a")
    assert target.take(8, 0.0, lambda _: 1.0) == []
    assert not target.accounts
    with pytest.raises(UsageError, match="no place"):
        target.put("a", MESSAGE, 0.0, 0.0)


@pytest.mark.parametrize(("each_s", "most"), [(0.0005, 8), (0.004, 8), (0.008, 5), (0.016, 2), (0.5, 2)])
def test_as_much_is_under_way_as_is_soon_done(each_s: float, most: int) -> None:
    pace, now = Pace(), 0.0
    assert pace.most == BATCH
    pace.done(now)  # what nobody handed on
    for _ in range(40):  # one batch waits while one is worked on
        pace.sent(now, 4)
        pace.sent(now, 2)
        now += 4 * each_s
        pace.done(now)
        now += 2 * each_s
        pace.done(now)
        now += 1.0  # nothing to do is no work
    assert pace.most == most
    assert link.CREDITS * pace.most * each_s <= max(UNDER_WAY_S, link.CREDITS * LEAST * each_s)
    pace.sent(now, 8)
    pace.forget()
    pace.done(now + 60)
    assert pace.most == most
