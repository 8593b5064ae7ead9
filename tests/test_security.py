"""Who may dial: allowed keys and addresses get an answer, others none, and secrets stay where they are."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from test_guides import blocks
from test_receiver import JPEG, running, wait

from engines.errors import UsageError
from stream.access.keys import allow_key, allowed_keys, create_keys, read_keys
from stream.commands.cli import main
from stream.frame import Camera, Record
from stream.sender import Sender
from stream.service.ingress.security import SocketAuth

IMAGE = np.zeros((8, 8, 3), np.uint8)


@contextmanager
def guarded(folder: Path, curve: bool, addresses: tuple[str, ...] = (), **receive: Any) -> Iterator[Any]:
    """A receiver behind an authenticator."""
    auths: list[SocketAuth] = []

    def make_auth(context: zmq.Context[zmq.Socket[bytes]]) -> SocketAuth:
        auths.append(SocketAuth(context, folder, curve, addresses))
        return auths[0]

    with running(make_auth=make_auth, **receive) as receiver:
        try:
            yield receiver
        finally:
            auths[0].close()


def answered(address: str, camera: str, **keys: Any) -> bool:
    with Sender(address, camera, patience_s=1.0, **keys) as sender:
        sender.send(IMAGE, time.time())
        return sender.unanswered == 0


def test_only_allowed_keys_are_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    create_keys(tmp_path, "server")
    create_keys(tmp_path, "cell")
    (tmp_path / "strangers").mkdir()
    create_keys(tmp_path / "strangers", "evil")
    server = tmp_path / "server.key"
    with guarded(tmp_path, curve=True) as receiver:
        assert answered(receiver.ports[0], "cell", key=tmp_path / "cell.key_secret", server_key=server)
        evil = tmp_path / "strangers" / "evil.key_secret"
        assert not answered(receiver.ports[0], "evil", key=evil, server_key=server)
        assert not answered(receiver.ports[0], "plain")
        assert list(receiver.sessions) == ["cell"]
        wait(lambda: "no key" in caplog.text)
        assert receiver.refused["no access"] >= 2
    stranger = read_keys(evil)[0].decode()
    assert [stranger in line for line in caplog.messages if "with the key" in line] == [True]
    lines = [line for line in caplog.messages if "no access" in line]
    assert 2 <= len(lines) == len(set(lines))  # one for each reason


def test_a_key_sends_as_its_own_camera_only_and_no_longer_than_it_is_allowed(tmp_path: Path) -> None:
    for name in ("server", "cell-3", "cell-4"):
        create_keys(tmp_path, name)
    with (guarded(tmp_path, curve=True) as receiver,
          zmq.Context() as context, context.socket(zmq.REQ) as socket):
        socket.curve_serverkey, _ = read_keys(tmp_path / "server.key")
        socket.curve_publickey, socket.curve_secretkey = read_keys(tmp_path / "cell-3.key_secret")
        socket.linger, socket.rcvtimeo = 0, 10_000
        socket.connect(receiver.ports[0])

        def answer(camera: str) -> bytes:
            socket.send_multipart([json.dumps({"msg": camera}).encode(), JPEG])
            return socket.recv()

        assert answer("cell-3") == b"OK"
        assert b"camera 'cell-4' with the key of 'cell-3'" in answer("cell-4")
        assert list(receiver.sessions) == ["cell-3"]
        (tmp_path / "allowed" / "cell-3.key").unlink()
        receiver.auth.reload()
        assert b"a key that is no longer allowed" in answer("cell-3")  # over the connection that stands
        assert receiver.refused == {"not its key": 1, "key not allowed": 1}


README = Path(__file__).resolve().parents[1] / "stream" / "service" / "README.md"  # installed, the package has none
GUIDE = [block.text for block in blocks(README) if block.info == ("python",)]


@pytest.mark.parametrize("kind", ["imagezmq", "vidgear"])
def test_senders_of_others_are_let_in_as_the_guide_has_it(kind: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [block for block in GUIDE if f"import {kind}" in block or f"from {kind}" in block]
    for name in ("server", "cell-3"):
        create_keys(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    with guarded(tmp_path, curve=True) as receiver:
        scope: dict[str, Any] = {}
        exec(compile(code.replace("5555", receiver.ports[0].rpartition(":")[2]), "guide", "exec"), scope)
        sender = scope["sender"]
        try:
            if kind == "imagezmq":
                assert sender.send_image("cell-3", IMAGE) == sender.send_jpg("cell-3", JPEG) == b"OK"
            else:
                sender.send(IMAGE, message="cell-3")
            wait(lambda: list(receiver.sessions) == ["cell-3"])
            assert receiver.refused == {}
        finally:
            sender.close()


@pytest.mark.parametrize("curve", [True, False])
def test_a_key_too_many_or_too_few_is_refused_with_a_line(curve: bool, tmp_path: Path,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    for name in ("server", "cell-3"):
        create_keys(tmp_path, name)
    keys = {} if curve else {"key": tmp_path / "cell-3.key_secret", "server_key": tmp_path / "server.key"}
    got: list[Record] = []
    with guarded(tmp_path, curve=curve) as receiver:
        receiver.deliver = got.extend
        assert not answered(receiver.ports[0], "cell-3", **keys)
        wait(lambda: receiver.refused["no access"])
    lines = [line for line in caplog.messages if "no access" in line]
    assert len(lines) == len(set(lines)) == len(got)  # a record for every sink; it tries again and again
    for line, record in zip(lines, got, strict=True):
        assert ("has no key" if curve else "has a key") in line
        assert isinstance(record, Camera)
        assert (record.camera, record.action) == (receiver.ports[0], "refused")
        assert line.partition("(")[2][:-1] in record.why


@pytest.mark.parametrize("mode", [1, 2])  # "StoneHouse", "IronHouse"
def test_netgears_secure_modes_are_let_in_with_its_own_key(mode: int, tmp_path: Path) -> None:
    from vidgear.gears import NetGear
    from vidgear.gears.helper import generate_auth_certificates

    create_keys(tmp_path, "server")
    _, _, public = generate_auth_certificates(str(tmp_path / "vidgear"), overwrite=False, logging=False)
    (Path(public) / "server.key").write_text((tmp_path / "server.key").read_text())
    with guarded(tmp_path, curve=True) as receiver:
        allow_key(tmp_path, Path(public) / "client.key", "cell")
        receiver.auth.reload()
        sender = NetGear(address="127.0.0.1", port=receiver.ports[0].rpartition(":")[2], protocol="tcp", pattern=1,
                         receive_mode=False, logging=False, secure_mode=mode, request_timeout=4, max_retries=1,
                         custom_cert_location=str(tmp_path / "vidgear"), jpeg_compression=False)
        try:
            sender.send(IMAGE, message="cell")
            wait(lambda: list(receiver.sessions) == ["cell"])
        finally:
            sender.close(kill=True)


@pytest.mark.parametrize(("addresses", "comes"), [(("127.0.0.1",), True), (("10.1.2.3",), False)])
def test_only_listed_addresses_are_answered(addresses: tuple[str, ...], comes: bool, tmp_path: Path) -> None:
    with guarded(tmp_path, curve=False, addresses=addresses) as receiver:
        assert answered(receiver.ports[0], "cell") == comes
        wait(lambda: bool(receiver.refused["no access"]) != comes)


def test_a_sender_that_was_turned_away_does_not_wait_for_ever(tmp_path: Path) -> None:
    with (guarded(tmp_path, curve=False, addresses=("10.1.2.3",)) as receiver,
          Sender(receiver.ports[0], "cell", patience_s=0.1) as sender):
        wait(lambda: not sender._socket.poll(0, zmq.POLLOUT))  # ZeroMQ gave up: it would wait for another receiver
        for k in range(3):
            sender.send(IMAGE, float(k))
        assert sender.unanswered == 3


def test_a_picture_that_was_lost_while_it_was_sent_is_one_without_an_answer(tmp_path: Path) -> None:
    with (guarded(tmp_path, curve=False, addresses=("127.0.0.1",)) as receiver,
          Sender(receiver.ports[0], "cell", patience_s=5.0) as sender):
        sender._socket.send_multipart = lambda parts: None  # as ZeroMQ does when the connection goes meanwhile
        assert sender.send(IMAGE, 0.0) is None
        assert sender.unanswered == 1
        sender.send(IMAGE, 1.0)
        assert sender.unanswered == 1  # the next one comes through


def test_keys_are_made_listed_and_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, elsewhere = tmp_path / "keys", tmp_path / "elsewhere"
    assert main(["keys", "new", "server", "--folder", str(folder)]) == 0
    assert main(["keys", "new", "cell-3", "--folder", str(folder)]) == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "cell-3.key_secret").stat().st_mode) == 0o600
    create_keys(elsewhere, "frame")
    assert main(["keys", "allow", str(elsewhere / "frame.key_secret"), "--folder", str(folder)]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--folder", str(folder)]) == 0
    public, secret = read_keys(elsewhere / "frame.key_secret")
    assert secret is not None
    assert capsys.readouterr().out.splitlines() == [
        f"cell-3 {read_keys(folder / 'cell-3.key_secret')[0].decode()}", f"frame {public.decode()}"]
    for file in (folder / "allowed").iterdir():
        assert secret not in file.read_bytes()
        assert read_keys(file)[1] is None


def test_wrong_keys_are_refused(tmp_path: Path) -> None:
    create_keys(tmp_path, "cell")
    (tmp_path / "words.key").write_text("hello")
    for call, says in [(lambda: create_keys(tmp_path, "cell"), "which exist"),
                       (lambda: create_keys(tmp_path, "../x"), "called"),
                       (lambda: allow_key(tmp_path, tmp_path / "words.key"), "no key"),
                       (lambda: allow_key(tmp_path, tmp_path / "cell.key_secret"), "allowed already"),
                       (lambda: read_keys(tmp_path / "none.key"), "no key"),
                       (lambda: Sender("tcp://127.0.0.1:9", "x", key=tmp_path / "cell.key_secret"), "one key file"),
                       (lambda: SocketAuth(zmq.Context.instance(), tmp_path, True, ()), "no key")]:
        with pytest.raises(UsageError, match=says):
            call()
    assert list(allowed_keys(tmp_path)) == ["cell"]
