"""What is wrong, and with what, is told in /health and /metrics; what does not keep events back leaves it healthy."""

from __future__ import annotations

import os
import signal
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.exposition import generate_latest
from test_live_feed import ODD, state
from test_service import wait
from test_worker_supervision import supervise

from stream.cluster.cluster import Cluster
from stream.cluster.placement import Placement
from stream.sender import Sender
from stream.service import resources
from stream.service.config import Config
from stream.service.egress.health import Metrics
from stream.service.resources import ResourceMonitor, find_shortages
from stream.service.service import Service


def exposed(said: dict[str, Any]) -> list[str]:
    return generate_latest(Metrics(lambda: said).registry).decode().splitlines()


def test_what_only_grows_is_a_counter_and_what_is_not_known_is_absent() -> None:
    said = state(engine_restarts=3, faults={"engine": "it does not serve yet", "disk of /logs": "3 MB free"})
    for camera, facts in {"cell": {"restarts": 4, "latency_seconds": 0.04, "left_at": None}, ODD: {"left_at": 1.75e9},
                          "away": {"staleness_seconds": None, "latency_seconds": None, "left_at": None}}.items():
        said["cameras"][camera] = {**said["cameras"][camera], **facts}
    lines = exposed(said)
    for line in ("# TYPE gatestream_engine_restarts_total counter", "gatestream_engine_restarts_total 3.0",
                 'gatestream_camera_restarts_total{camera="cell"} 4.0', "gatestream_healthy 1.0",
                 'gatestream_camera_latency_seconds{camera="cell"} 0.04', 'gatestream_fault{part="engine"} 1.0',
                 'gatestream_fault{part="disk of /logs"} 1.0', 'gatestream_camera_present{camera="away"} 0.0'):
        assert line in lines
    known = [line.partition(" ")[0] for line in lines if line.startswith((
        "gatestream_camera_staleness_seconds{", "gatestream_camera_left_at{", "gatestream_camera_latency_seconds{"))]
    assert not [one for one in known if "away" in one]
    assert len([one for one in known if "left_at" in one]) == 1


@pytest.mark.parametrize(("free_mb", "files", "short"), [
    (201, 90, set()), (199, 90, {"disk"}), (201, 91, {"file descriptors"}), (0, 100, {"disk", "file descriptors"}),
    (201, PermissionError(), {"file descriptors"}), (201, FileNotFoundError(), set()), (OSError(), 1, set())])
def test_what_is_nearly_used_up(free_mb: int | OSError, files: int | OSError, short: set[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")

    def disk_usage(folder: Path) -> Any:
        assert folder == Path("/logs")
        if isinstance(free_mb, OSError):
            raise free_mb
        return usage(free_mb * 10 ** 6)

    def listdir(folder: str) -> list[str]:
        if isinstance(files, OSError):
            raise files
        return ["x"] * files

    monkeypatch.setattr(resources.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(resources.os, "listdir", listdir)
    monkeypatch.setattr(resources.resource, "getrlimit", lambda which: (100, 200))
    assert {part.partition(" of ")[0] for part in find_shortages([Path("/logs")])} == short


def test_a_shortage_is_logged_once_and_goes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    found, looks = [{"disk of /logs": "3 MB free"}] * 3 + [{}] * 3, []

    def look(folders: object) -> dict[str, str]:
        looks.append(folders)
        return found[min(len(looks), len(found)) - 1]

    monkeypatch.setattr(resources, "find_shortages", look)
    monkeypatch.setattr(resources, "PERIOD_S", 0.0)
    monitor = ResourceMonitor([Path("/logs")])
    wait(lambda: len(looks) > len(found))
    monitor.close()
    assert monitor.faults == {}
    assert caplog.text.count("disk of /logs: 3 MB free") == 1


def test_a_service_tells_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "find_shortages", lambda folders: {f"disk of {one}": "" for one in folders})
    config = Config.model_validate({
        "receive": {"bind": ["tcp://127.0.0.1:*"]}, "health": {"bind": "127.0.0.1:0"},
        "results": {"log": tmp_path / "events.db"}, "clips": {"folder": tmp_path / "clips"}, "camera": [
            {"name": "away"}, {"name": "desk", "lost_after_s": 0.3}, {"name": "broken", "source": "rtsp://127.0.0.1:9/a"},
            {"name": "played", "source": "sim://gestures?seconds=0.2", "lost_after_s": 0.3}]})
    with Service(config) as service:
        disks = {f"disk of {tmp_path}", f"disk of {tmp_path / 'clips'}"}
        names = ["away", "desk", "broken", "played"]
        said = service.state()
        assert not said["healthy"]
        assert set(said["faults"]) - disks == {"engine", *(f"camera {one}" for one in names)}
        assert [said["cameras"][one]["staleness_seconds"] for one in names] == [None] * 4
        supervise(service, lambda: service.state()["healthy"])
        supervise(service, lambda: service._resources.faults)
        with Sender(service.addresses[0], "desk") as sender:
            def is_recognised() -> bool:
                sender.send(np.zeros((48, 64, 3), np.uint8), time.time())
                return bool(service.state()["cameras"]["desk"]["latency_seconds"])

            supervise(service, is_recognised)
            said = service.state()
            assert "camera desk" not in said["faults"]
            assert said["cameras"]["desk"]["left_at"] is None
            sender.send(np.zeros((48, 64, 3), np.uint8), time.time() + 7200)
            assert "its clock is +7200 s off" in service.state()["faults"]["camera desk"]
        supervise(service, lambda: not service.state()["cameras"]["desk"]["present"])
        supervise(service, lambda: (of := service.state()["cameras"]["played"])["received"] and not of["present"])
        supervise(service, lambda: service._supervisor.children["played"].finished)
        broken = service._supervisor.children["broken"].process
        assert broken is not None
        broken.kill()
        supervise(service, lambda: service.state()["cameras"]["broken"]["restarts"] == 1)
        said = service.state()
        assert said["healthy"]  # none of these keeps events back
        assert set(said["faults"]) == {"camera away", "camera desk", "camera broken", *disks}
        assert said["cameras"]["desk"]["left_at"] == pytest.approx(
            time.time() - said["cameras"]["desk"]["staleness_seconds"], abs=1)
        assert said["cameras"]["away"]["staleness_seconds"] is said["cameras"]["away"]["left_at"] is None
        os.kill(service.receiver.worker.pid, signal.SIGKILL)
        supervise(service, lambda: service.state()["engine_restarts"] == 1)
        said = service.state()
        assert not said["healthy"]
        assert "1 times" in said["faults"]["engine"]
        assert "gatestream_engine_restarts_total 1.0" in exposed({**said, "api": {}})
        supervise(service, lambda: service.state()["healthy"])
        assert "engine" not in service.state()["faults"]


def test_a_cluster_tells_what_is_wrong_with_its_workers() -> None:
    cluster = object.__new__(Cluster)
    worker = SimpleNamespace(state=state(faults={"camera cell": "it has sent nothing for 9 s"}, cameras={}))
    for name, value in {"config": Config(), "_workers": {"worker 1": worker}, "_placement": Placement(), "_lost": 0,
                        "_contract": SimpleNamespace(name="gesture", background="none"),
                        "outbox": SimpleNamespace(counts={}, faults={}, state=dict)}.items():
        setattr(cluster, name, value)
    cluster._placement.join("worker 1")
    said = cluster.state()
    assert (said["healthy"], said["faults"]) == (True, {"worker 1: camera cell": "it has sent nothing for 9 s"})
