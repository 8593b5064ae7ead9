"""The service's HTTP and WebSocket API, asked by real clients: events, cameras, live records, and who may have them."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_live_feed import JPEG, ODD, frame, prediction, state, write
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from engines.errors import UsageError
from stream.access.tokens import create_token, read_tokens, revoke_token
from stream.commands.cli import main
from stream.frame import Event
from stream.notices import NoticeLimiter
from stream.service.api import connections
from stream.service.api.server import serve_api
from stream.service.config import Config, parse_config
from stream.service.egress.health import Metrics, ServiceState
from stream.sinks.live_feed import LiveFeed
from stream.sinks.log import EventLog, clip_name, read_events
from stream.wire.frames import RecentFrames
from stream.wire.messages import Limits, Message

PATIENCE_S = 20.0


def wait(condition: Callable[[], Any]) -> Any:
    """What it gives once that is true."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    return found


class Api:
    """An API that is served, and what is behind it."""

    def __init__(self, config: Config) -> None:
        self.config, self.state, self.address = config, state(), ""
        recent = RecentFrames(2.0)
        for camera in ("cell", ODD):
            recent.add(frame(camera, Message("gatestream", camera, JPEG)))
        self.recent, self.feed, self.metrics = recent, LiveFeed(recent, Limits()), Metrics(lambda: self.state)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"http://{self.address}{path}", timeout=PATIENCE_S, **options)

    def connected(self) -> bool:
        """Whether somebody reads live records."""
        return bool(self.feed._readers)


@contextmanager
def serving(**config: Any) -> Iterator[Api]:
    api = Api(Config.model_validate({"health": {"bind": "127.0.0.1:0"}, **config}))
    with serve_api(api.config, api.metrics, api.feed if api.config.serves_pictures else None) as address:
        assert address is not None
        api.address = address
        yield api


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as found:
        yield found


# ---- an HTTP server that is not too literal ----

@pytest.mark.parametrize(("path", "kind"), [
    ("/health?x", "application/json"), ("/metrics?name=x", "text/plain"), ("/cameras/cell.jpg?t=1", "image/jpeg"),
    ("/cameras/cell/picture.jpg?t=1", "image/jpeg"), ("/docs", "text/html")])
def test_head_and_query_strings(path: str, kind: str, api: Api) -> None:
    answer, head = api.get(path), httpx.head(f"http://{api.address}{path}")
    assert answer.status_code == head.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))


@pytest.mark.parametrize(("hosts", "called", "status"), [
    ((), "localhost:1", 200), ((), "LOCALHOST", 200), ((), "[::1]:9155", 200), ((), "10.0.0.9:80", 200),
    ((), socket.gethostname(), 200), ((), "evil.example:80", 403), ((), "", 403), ((), "a b[", 403),
    (("cameras.example",), "cameras.example", 200), (("cameras.example",), "evil.example", 403), (("*",), "any", 200)])
def test_names_it_may_be_called_by(hosts: tuple[str, ...], called: str, status: int) -> None:
    with serving(api={"hosts": hosts}) as api:
        assert {api.get(path, headers={"host": called}).status_code for path in ("/health", "/cameras/cell.jpg")} == {
            status}


def test_ipv6(unused_port: int) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6, which this machine lacks")
    with serving(health={"bind": f"[::1]:{unused_port}"}) as api:
        assert api.address == f"[::1]:{unused_port}"
        assert api.get("/health").json()["healthy"]
        curl = subprocess.run(["curl", "-sgI", f"http://[::1]:{unused_port}/health"], capture_output=True, check=True)
        assert curl.stdout.startswith(b"HTTP/1.1 200")


def test_a_service_that_is_not_healthy_says_so_and_counts_are_shown(api: Api) -> None:
    api.state = state(healthy=False)
    assert api.get("/health").status_code == 503
    assert api.get("/nothing").status_code == 404
    api.get("/health", headers={"host": "evil.example"})
    assert api.get("/health").json()["api"] == {"requests": 4, "refused: host": 1}
    assert 'gatestream_api_total{outcome="refused: host"} 1.0' in api.get("/metrics").text
    assert [one["name"] for one in api.get("/cameras").json()] == ["cell", ODD, "away"]
    assert "access-control-allow-origin" not in api.get("/health", headers={"origin": "http://a.example"}).headers


def test_the_documentation_loads_nothing_from_elsewhere(api: Api) -> None:
    page, schema = api.get("/docs").text, api.get("/openapi.json").json()
    assert "<script" not in page
    assert "http" not in page
    for path in ("/health", "/metrics", "/events", "/events/{id}/video", "/cameras/{name}/stream.mjpg", "/live/sse"):
        assert path in page
        assert path in schema["paths"]


# ---- what clients may hold ----

def test_idle_clients_are_let_go_and_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.1)
    begun = b"GET /health HTTP/1.1\r\nHost: local"
    with serving() as api:
        host, _, port = api.address.rpartition(":")
        for sent in (b"", begun, b"\x16\x03\x01", begun + b"\r\n\r\n" + begun):
            with socket.create_connection((host, int(port)), PATIENCE_S) as idle:
                idle.sendall(sent)
                while idle.recv(1000):  # until the service ends it
                    pass
        assert api.get("/health").status_code == 200


def test_more_connections_than_it_takes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS", 5)
    monkeypatch.setattr(connections, "NOTICES", NoticeLimiter())
    with serving() as api, ExitStack() as crowd:
        host, _, port = api.address.rpartition(":")
        idle = [crowd.enter_context(socket.create_connection((host, int(port)), PATIENCE_S)) for _ in range(50)]
        assert api.get("/health").status_code == 200  # instead of the one that waited longest
        with suppress(ConnectionError):
            assert [one.recv(1) for one in idle[:46]] == [b""] * 46
        for _ in range(5):
            crowd.enter_context(connect(f"ws://{api.address}/live"))
        wait(lambda: len(api.feed._readers) == 5)
        with pytest.raises(httpx.HTTPError):
            api.get("/health")
        assert api.metrics.api["refused: connections"] > 50
        assert caplog.text.count("the API has 5 connections") == 1
        crowd.close()
        wait(lambda: not api.connected())
        assert api.get("/health").status_code == 200


@pytest.mark.parametrize("form", ["text", "json"])
def test_clients_that_hang_up_leave_nothing_in_the_log(form: str, monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    from stream.notices import log_to_stderr

    monkeypatch.setenv("GATESTREAM_LOG", form)
    with log_to_stderr(), serving() as api:
        host, _, port = api.address.rpartition(":")
        for path in ["health", "cameras/cell.jpg", "cameras/cell/live", "cameras/cell/stream.mjpg", "live/sse"] * 5:
            with socket.create_connection((host, int(port)), PATIENCE_S) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets the connection
                client.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                client.recv(10)
        for _ in range(5):
            with suppress(ConnectionClosed, OSError), connect(f"ws://{api.address}/live") as web_socket:
                web_socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                web_socket.socket.shutdown(socket.SHUT_RDWR)
        for _ in range(20):
            write(api.feed, prediction("cell"))
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(b"no HTTP at all\r\n\r\n")
            client.recv(10)
        wait(lambda: write(api.feed, prediction("cell")) or not api.connected())
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    from stream.notices import log_to_stderr

    monkeypatch.setenv("GATESTREAM_LOG", "json")
    with log_to_stderr(), serving() as api:
        api.state = {}
        assert api.get("/health").status_code == 500
    [line] = capfd.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "error"


def test_a_quota_of_requests() -> None:
    with serving(api={"requests_per_s": 0.01}) as api:
        assert api.get("/health").status_code == 200
        refused = api.get("/health")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "requests_per_s" in refused.json()["detail"]


def test_a_slow_reader_loses_records_and_others_none(api: Api) -> None:
    record = {**prediction("cell"), "text": "x" * 5000}
    with connect(f"ws://{api.address}/live", max_queue=1) as slow, connect(f"ws://{api.address}/live") as reader:
        wait(lambda: len(api.feed._readers) == 2)
        written = 0
        while not api.metrics.api["missed"]:
            write(api.feed, *[record] * 10)
            written += 10
            assert [json.loads(reader.recv(PATIENCE_S)) for _ in range(10)] == [record] * 10
        write(api.feed, {"type": "gap", "camera": "cell"})
        assert json.loads(reader.recv(PATIENCE_S))["type"] == "gap"
        missed, got = 0, 0
        while got + missed < written + 1:  # the slow one is told what it lost
            said = json.loads(slow.recv(PATIENCE_S))
            missed, got = (missed + said["records"], got) if said["type"] == "missed" else (missed, got + 1)
    assert got + missed == written + 1
    assert missed == api.get("/health").json()["api"]["missed"] > 0


@pytest.mark.parametrize("path", ["live", "live/sse", "cameras/cell/live"])
def test_who_does_not_read_is_let_go(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALLED_S", 0.05)
    headers = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n") if path == "live" else ""
    with serving() as api:
        host, _, port = api.address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
            wait(api.connected)
            record = {**prediction("cell"), "text": "x" * 100_000}
            wait(lambda: write(api.feed, *[record] * 10) or not api.connected())


def test_the_end_of_the_service_ends_its_clients() -> None:
    with ExitStack() as clients, serving() as api:
        web_socket = clients.enter_context(connect(f"ws://{api.address}/live"))
        answer = clients.enter_context(httpx.stream("GET", f"http://{api.address}/cameras/cell/stream.mjpg"))
        wait(api.connected)
        clients = clients.pop_all()
    with clients:
        with pytest.raises(ConnectionClosed):
            web_socket.recv(PATIENCE_S)
        with suppress(httpx.HTTPError):
            answer.read()
    assert [thread.name for thread in threading.enumerate() if thread.name == "api"] == []


# ---- events ----

@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of five events; the first has a video."""
    path, folder = tmp_path / "events.db", tmp_path / "clips"
    folder.mkdir()
    with EventLog(path, "gesture", "service") as opened:
        opened.write(None, [Event(camera, "gesture", label, 1000.0 + k, 1000.5 + k, 0.9, False) for k, (camera, label)
                            in enumerate([("cell", "left"), (ODD, "left"), ("cell", "tick"), ("cell", "left"),
                                          ("cell", "up")])])
    first = read_events(path)[0]
    (folder / clip_name(first.id, "cell", "left")).write_bytes(b"0123456789")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    return path


@pytest.fixture
def archive(log: Path) -> Iterator[Api]:
    with serving(results={"log": log}, clips={"folder": log.parent / "clips"}) as found:
        yield found


@pytest.mark.parametrize(("query", "found"), [
    ("", [0, 1, 2, 3, 4]), ("camera=cell", [0, 2, 3, 4]), ("label=left&camera=cell", [0, 3]), ("head=other", []),
    ("since=1002.2&until=1003.2", [2, 3]), ("since=1970-01-01T00:16:43Z", [3, 4]), ("order=newest", [4, 3, 2, 1, 0]),
    ("until=1970-01-01T02:16:40%2B02:00", [0])])
def test_events_are_found(query: str, found: list[int], archive: Api) -> None:
    said = archive.get(f"/events?{query}").json()
    assert [one["started_at"] - 1000 for one in said["events"]] == found
    assert said["next"] is None


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_pages_follow_one_another(order: str, archive: Api) -> None:
    path, seen = f"/events?limit=2&camera=cell&order={order}&since=1000", []
    while path:
        said = archive.get(path).json()
        assert len(said["events"]) <= 2
        seen, path = seen + said["events"], said["next"]
    whole = archive.get(f"/events?camera=cell&order={order}").json()["events"]
    assert seen == whole
    assert len(seen) == 4
    after = archive.get(f"/events?after_id={seen[1]['id']}&camera=cell&order={order}").json()["events"]
    assert after == seen[2:]
    assert archive.get(f"/events?after_id={seen[3]['id']}").json()["events"] == ([] if order == "oldest" else
                                                                                   archive.get("/events").json()["events"][1:])


@pytest.mark.parametrize(("path", "status"), [
    ("/events?limit=0", 422), ("/events?limit=9999", 422), ("/events?since=yesterday", 422), ("/events?since=nan", 422),
    ("/events?since=0001-01-01", 422), ("/events?until=9999-12-31T23:59:59", 200), ("/events?until=1e300", 422),
    ("/events?cursor=99999999999999999999", 422), ("/events?camera=%00%ff", 200), ("/events/%00", 404),
    ("/cameras/%00.jpg", 404), ("/cameras//.jpg", 404),
    ("/events?after_id=none", 404), ("/events/none", 404), ("/events/none/video", 404), ("/events?cursor=x", 422),
    ("/events/..%2F..%2Fsecret.mp4/video", 404)])
def test_what_is_no_event(path: str, status: int, archive: Api) -> None:
    answer = archive.get(path)
    assert answer.status_code == status
    assert ("detail" in answer.json()) == (status != 200)


def test_one_event_and_its_video(archive: Api, log: Path) -> None:
    first, second = archive.get("/events?limit=2").json()["events"]
    assert first == archive.get(f"/events/{first['id']}").json()
    assert (first["type"], first["label"], first["open"]) == ("event", "left", False)
    assert (log.parent / "clips" / first["clip"]).is_file()
    assert archive.get(first["video"]).content == b"0123456789"
    part = archive.get(first["video"], headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"234", "video/mp4")
    assert "video" not in second
    assert archive.get(f"/events/{second['id']}/video").status_code == 404
    log.write_bytes(b"no database")
    broken = archive.get("/events")
    assert broken.status_code == 503
    assert "not a database" in broken.json()["detail"]


def test_without_a_log(api: Api) -> None:
    assert "results.log" in api.get("/events").json()["detail"]


# ---- live ----

def test_records_come_by_web_socket_and_as_server_sent_events(api: Api) -> None:
    with connect(f"ws://{api.address}/live?camera=cell&type=event&type=gap") as web_socket, \
            httpx.stream("GET", f"http://{api.address}/live/sse?camera={ODD}", timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        wait(lambda: len(api.feed._readers) == 2)
        web_socket.send("whatever it says")
        web_socket.send(b"is passed over")
        other = {"type": "view", "camera": ODD, "usable": True}  # of a type that nobody here knows
        write(api.feed, prediction("cell"), {"type": "gap", "camera": "cell"}, other)
        assert json.loads(web_socket.recv(PATIENCE_S)) == {"type": "gap", "camera": "cell"}
        assert json.loads(next(line for line in lines if line.startswith("data: "))[6:]) == other
    wait(lambda: not api.connected())


def test_pictures_come_as_motion_jpeg(api: Api) -> None:
    with httpx.stream("GET", f"http://{api.address}/cameras/cell/stream.mjpg", timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=picture"
        parts, got = answer.iter_raw(), b""
        while JPEG not in got:
            got += next(parts)
        assert got.startswith(b"--picture\r\nContent-Type: image/jpeg\r\n")
        api.recent.add(frame("cell", Message("gatestream", "cell", JPEG + b"newer")))
        while b"newer" not in got:
            got += next(parts)
        assert got.count(b"--picture") == 2
    assert api.get("/cameras/nobody/stream.mjpg").status_code == 404


@pytest.mark.parametrize(("origin", "status"), [
    ("http://{}", 101), (None, 101), ("https://wall.example", 101), ("http://evil.example", 403),
    ("http://localhost:1", 403), ("null", 403), ("http://[", 403)])
def test_another_sites_page_may_not_listen(origin: str | None, status: int) -> None:
    with serving(api={"hosts": ["wall.example"]}) as api:
        try:
            with connect(f"ws://{api.address}/live", origin=origin and origin.format(api.address)):  # type: ignore[arg-type]
                found = 101
        except InvalidStatus as refused:
            found = refused.response.status_code
    assert found == status


# ---- tokens, TLS ----

def test_tokens_and_their_rights(tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens"
    tokens = {name: create_token(file, name, rights) for name, rights in
              {"reader": ["read"], "viewer": ["pictures"], "admin": ["admin"]}.items()}
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(token in file.read_text() for token in tokens.values())
    paths = {"/health": "read", "/metrics": "read", "/events": "read", "/cameras": "read",
             "/cameras/cell.jpg": "pictures", "/cameras/cell/picture.jpg": "pictures"}
    with serving(api={"tokens": file}, results={"log": log}) as api:
        for path, right in paths.items():
            assert api.get(path).status_code == 401
            assert api.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            for name, token in tokens.items():
                wanted = 200 if name == "admin" or (name == "reader") == (right == "read") else 403
                assert api.get(path, headers={"Authorization": f"bearer {token}"}).status_code == wanted
                assert api.get(path, params={"token": token}).status_code == wanted
        assert api.get("/health", headers={"host": "any.example"}).status_code == 401  # a foreign page has no token
        for token, status in (("wrong", 401), (tokens["viewer"], 403)):
            with pytest.raises(InvalidStatus) as refused, connect(f"ws://{api.address}/live?token={token}"):
                pass
            assert refused.value.response.status_code == status
        with connect(f"ws://{api.address}/live?token={tokens['reader']}") as web_socket:
            wait(api.connected)
            write(api.feed, prediction("cell"))
            assert json.loads(web_socket.recv(PATIENCE_S)) == prediction("cell")
            revoke_token(file, "reader")
            list(web_socket)  # until it is closed
        assert api.get("/health", params={"token": tokens["reader"]}).status_code == 401
        file.write_text("nonsense")
        assert api.get("/health", params={"token": tokens["admin"]}).status_code == 401
        assert api.metrics.api["refused: token"] > 0
    said = "".join(capfd.readouterr())
    assert not any(token in said for token in tokens.values())


def test_the_commands_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "tokens"
    assert main(["tokens", "new", "wall", "--rights", "read,pictures", "--file", str(file)]) == 0
    secret = capsys.readouterr().out.strip()
    assert len(secret) == 43
    assert main(["tokens", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out == "wall read,pictures\n"
    for wrong in (["new", "wall"], ["new", "two", "--rights", "write"], ["new", "a b"], ["revoke", "nobody"]):
        assert main(["tokens", *wrong, "--file", str(file)]) == 2
    assert main(["tokens", "revoke", "wall", "--file", str(file)]) == 0
    assert read_tokens(file) == []
    assert main(["tokens", "list", "--file", str(tmp_path)]) == 2


@pytest.mark.parametrize(("text", "line", "says"), [
    ('[health]\nbind = "0.0.0.0:1"\n', 1, "gatestream tokens new"), ('[health]\nbind = "[::]:1"\n', 1, "api.open"),
    ('[health]\nbind = "127.0.0.1:70000"\n', 2, "65535"), ('[api]\ntokens = "/nowhere"\n', 2, "a file that is there"),
    ('[api]\ncertificate_key = "/dev/null"\n', 2, "a file that is there")])
def test_what_is_refused_before_it_starts(text: str, line: int, says: str) -> None:
    with pytest.raises(UsageError, match=f"configuration:{line}: .*{says}"):
        parse_config(text)


def test_what_is_let_in_because_somebody_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, config = tmp_path / "tokens", tmp_path / "a.toml"
    create_token(tokens, "one", ["read"])
    bind = '[health]\nbind = "0.0.0.0:1"\n[api]\n'
    assert not parse_config(f"{bind}open = true").serves_pictures
    assert parse_config(f"{bind}tokens = {json.dumps(str(tokens))}").serves_pictures
    assert parse_config('[health]\nbind = "127.0.0.2:1"').serves_pictures
    revoke_token(tokens, "one")
    for text in (f"tokens = {json.dumps(str(tokens))}", f"certificate = {json.dumps(str(tokens))}"):
        config.write_text(f"[api]\n{text}")
        assert main(["serve", str(config), "--check"]) == 2
        assert str(tokens) in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    with serving(api={"certificate": certificate, "certificate_key": key}) as api:
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"https://{api.address}/health", verify=trusted).json()["healthy"]
        with connect(f"wss://{api.address}/live", ssl=trusted) as web_socket:
            wait(api.connected)
            write(api.feed, prediction("cell"))
            assert json.loads(web_socket.recv(PATIENCE_S)) == prediction("cell")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{api.address}/health")


# ---- around it ----

def test_the_state_of_a_cluster_is_that_of_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a page that shows one stumbles over the other."""
    from types import SimpleNamespace

    from stream.cluster.cluster import Cluster
    from stream.cluster.placement import Placement

    cluster = object.__new__(Cluster)
    facts = {"config": Config(results={"log": tmp_path / "events.db"}), "_workers": {}, "_placement": Placement(),
             "_lost": 0, "_model": "gesture", "_contract": SimpleNamespace(name="gesture", background="none"),
             "outbox": SimpleNamespace(alive=True, counts={}, faults={}, state=dict)}
    for name, value in facts.items():
        setattr(cluster, name, value)
    said = cluster.state()
    assert set(said) - {"workers"} == ServiceState.__required_keys__ == set(state())
    assert said["log"] == str(tmp_path / "events.db")
    with serving() as api:
        api.state = dict(said)
        assert api.get("/health").status_code == 503
        assert api.get("/metrics").status_code == 200


def test_the_start_does_not_wait_for_the_library() -> None:
    code = ("import sys, stream.service.service; assert 'fastapi' not in sys.modules; "
            "assert 'uvicorn' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(autouse=True)
def uvicorns_log() -> Iterator[None]:
    """What the API does to uvicorn's log ends with the test."""
    log, parent = logging.getLogger("uvicorn"), logging.getLogger("uvicorn").parent
    yield
    log.parent = parent
