"""A cluster of two workers on this machine: cameras stay with their worker until it is killed, and results are one."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from engines.errors import UsageError
from engines.synthetic import Simulation
from stream.cluster.placement import Placement
from stream.sender import Sender
from stream.service.config import Config
from stream.sinks.log import read_events

RATE = 7.5
PATIENCE_S = 120.0


def test_cameras_go_where_the_load_is_least_and_stay() -> None:
    placement = Placement()
    assert placement.configure(["a", "b"]) == set()
    assert placement.unassigned == ["a", "b"]
    assert placement.join("one") == {"one"}
    assert placement.join("two") == set()  # sticky: nobody moves for a new worker
    assert placement.configure(["a", "b", "c", "d", "e"]) == {"one", "two"}
    assert (placement.cameras("one"), placement.cameras("two")) == (["a", "b", "e"], ["c", "d"])
    assert placement.configure(["b", "c", "d", "e"]) == {"one"}
    assert (placement.cameras("one"), placement.cameras("two")) == (["b", "e"], ["c", "d"])


@pytest.mark.parametrize(("cameras", "loads"), [("abcd", (2, 2)), ("abc", (2, 1)), ("a", (1, 0))])
def test_a_lost_workers_cameras_move_and_no_others(cameras: str, loads: tuple[int, int]) -> None:
    placement = Placement()
    for worker in ("one", "two"):
        placement.join(worker)
    placement.configure(list(cameras))
    assert (len(placement.cameras("one")), len(placement.cameras("two"))) == loads
    before = placement.cameras("two")
    lost, changed = placement.lose("one")
    assert sorted([*before, *lost]) == sorted(cameras)
    assert changed == ({"two"} if lost else set())
    assert placement.cameras("two")[:len(before)] == before
    assert placement.lose("two") == ([*before, *lost], set())
    assert placement.join("three") == {"three"}
    assert sorted(placement.cameras("three")) == sorted(cameras)
    placement.configure([])
    assert placement.cameras("three") == []


@pytest.mark.parametrize(("camera", "says"), [([], "without cameras"), ([{"name": "a"}], "without a source")])
def test_what_no_worker_can_dial(camera: list[dict[str, str]], says: str) -> None:
    pytest.importorskip("ray", reason="needs Ray (gatestream[cluster])")
    from stream.cluster.cluster import Cluster

    with pytest.raises(UsageError, match=says):
        Cluster(Config.model_validate({"camera": camera}))


@contextmanager
def publishers(ports: dict[str, int]) -> Iterator[None]:
    """Cameras that draw gestures for ever, at RATE."""
    stop = threading.Event()

    def play(name: str, port: int, seed: int) -> None:
        room, k = Simulation(seed, (96, 128), RATE, idle_s=(1.0, 2.0)), 0
        with Sender(f"tcp://127.0.0.1:{port}", name, publish=True) as sender:
            while not stop.wait(1 / RATE):
                sender.send(room.frame(k), time.time())
                k += 1

    threads = [threading.Thread(target=play, args=(name, port, seed))
               for seed, (name, port) in enumerate(ports.items(), 3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_two_workers_one_of_them_killed(tmp_path: Path, unused_ports: list[int]) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray (gatestream[cluster])")
    from stream.cluster.cluster import Cluster

    ports = dict(zip("abc", unused_ports, strict=False))
    config = Config.model_validate({
        "camera": [{"name": name, "source": f"zmq://127.0.0.1:{port}"} for name, port in ports.items()],
        "receive": {"staleness_ms": 60_000, "cameras": 8}, "results": {"log": tmp_path / "events.db"},
        "health": {"bind": None}, "cluster": {"workers": 2, "cores": 1}})

    with ExitStack() as stack:
        stack.enter_context(publishers(ports))
        ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="error")
        stack.callback(ray.shutdown)
        cluster = stack.enter_context(Cluster(config))

        def until(condition: Callable[[], object]) -> None:
            end = time.monotonic() + PATIENCE_S
            while not condition():
                assert time.monotonic() < end, f"it never came: {cluster.state()}"
                cluster.collect(0.05)

        def seen(camera: str) -> int:
            return len(read_events(tmp_path / "events.db", camera=camera))

        until(lambda: all(seen(name) for name in ports))
        homes = {name: facts["worker"] for name, facts in cluster.state()["cameras"].items()}
        assert sorted(homes) == ["a", "b", "c"]
        assert len(set(homes.values())) == 2
        victim = homes["a"]
        _, pid = ray.get(cluster._workers[victim].actor.where.remote())
        before = {name: seen(name) for name in ports}
        os.kill(pid, signal.SIGKILL)
        until(lambda: all(seen(name) > before[name] for name in ports))
        state = cluster.state()
        after = {name: facts["worker"] for name, facts in state["cameras"].items()}
        assert all(after[name] == homes[name] for name in ports if homes[name] != victim)
        assert victim not in after.values()
        assert state["engine_restarts"] == 1
        assert len(state["workers"]) == 2
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        gaps = {camera for camera, action in db.execute("SELECT camera, action FROM gaps")
                if action == "engine restarted"}
    assert gaps == {name for name in ports if homes[name] == victim}
