"""The server behind the page: a WebSocket for each Live page, and the page's files.

    browser ──► server   binary: time (float64, little-endian, Unix seconds) + JPEG; text, one of
                         {"source": "sim://gestures"}, null for the browser's own camera
                         {"service": "cell-3"}                   a camera of the service
                         {"threshold": 0.9}                      above which events open, null for the model's own
                         {"gates": true}, {"hidden": true}       records of gates come, too; nobody sees the page
                         {"save": {"label": "wave", "from": time, "to": time, "place": "kitchen"}}   stores this
    server ──► browser   text: {"hello": {...}}, {"at": time, "records": [...]}, {"error": "a sentence"},
                         {"error": ..., "of": "camera"} does not start or fails, {"error": ..., "of": "end"} has ended
                         {"saved": {"label": "wave", "number": 3, ...}}
                         {"stopped": true, "at": 0, "records": [...]}: what comes next is of the source asked for
                         binary: time + JPEG, a picture of a camera that the server opened
"""

import asyncio
import json
import logging
import re
import struct
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

import engines
from demo.allowed_sources import AllowedSources
from demo.basic_auth import BasicAuth, read_users
from demo.clip_store import ClipStore
from demo.live_sessions import LiveSession, LiveSessions
from demo.pages import mount_pages
from demo.pictograms import pictograms_router
from demo.sensitivity import sensitivity
from demo.service_api import ServiceClient, service_router
from demo.teach_api import is_same_origin, teach_router
from demo.trainer import Trainer
from engines.errors import GatestreamError, UsageError
from stream.recognizer import Recognizer
from stream.service.config import HealthConfig
from stream.sources.address import is_loopback

log = logging.getLogger("gatestream.ui")

PAGE = Path(__file__).parent / "page"
LEAST_HW = (288, 384)  # of pictures from a browser: they may become recordings, from which any model is to learn
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?", re.IGNORECASE)
SLOTS = 32  # pages at a time, at most
PINGS_S = 2.0  # a page that is gone without a word frees its slot after two of these


def serve(model: str, engine: str, host: str, port: int, open_browser: bool, auth: Path | None, lessons: Path | None,
          service: str | None, sources: Sequence[str] = (), any_source: bool = False,
          allow_hosts: Sequence[str] = ()) -> None:
    """`gatestream ui`: serves the page until interrupted.

    auth: a file of users, who alone may see it; lessons: the folder of recordings and taught models, by default one of
    the person's own; service: address of the health page of a service to show, by default where a service without a
    configuration has it; sources: what pages may open besides webcams and sim://; any_source: they may open all, as
    they may where only this machine reaches the page; allow_hosts: names that a proxy serves the page under. Raises
    UsageError for a port that is taken, a file that is none of users, a model that knows nothing yet, a source or a
    name that cannot be."""
    def open_recognizer(file: str) -> Recognizer:
        return Recognizer.open(file, engine, slots=SLOTS)

    engines.load(model).require_taught()
    for name in allow_hosts:
        if not HOST_NAME.fullmatch(name):
            raise UsageError(f"--allow-host {name}", "a host name, with a port if the browser shows one",
                             "leave out https:// and the path")
    hosts = tuple(name.lower() for name in allow_hosts)
    users, local = None if auth is None else read_users(auth), is_loopback(host) and not hosts
    allowed = AllowedSources(sources, any_source or local)
    if users is None and not local:
        log.warning("everybody who reaches %s may use its cameras: let users in only, with --auth",
                    ", ".join(hosts) or host)
    store = ClipStore(lessons or platformdirs.user_data_path("gatestream", appauthor=False) / "lessons")
    trainer = Trainer(store, model, engine, lambda new: sessions.replace_recognizer(open_recognizer(new), new))
    recognizer = trainer.open_newest(open_recognizer)
    if trainer.model != model:
        log.info("in use is what %s was taught: %s", model, trainer.model)
    with LiveSessions(recognizer, trainer.model, allowed) as sessions:
        client = ServiceClient(service or str(HealthConfig().bind))
        app = mount_pages(build_app(sessions, trainer, client, hosts or (() if local else ("*",))), engine, trainer)
        config = uvicorn.Config(app if users is None else BasicAuth(app, users), host=host, port=port,
                                log_level="warning", ws_ping_interval=PINGS_S, ws_ping_timeout=PINGS_S,
                                timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        try:
            socket = config.bind_socket()
        except SystemExit as error:  # uvicorn's way to say that it cannot
            raise UsageError(f"port {port} of {host}, which cannot be used", "a free port",
                             "choose another one with --port") from error
        address = f"http://{'[' + host + ']' if ':' in host else host}:{socket.getsockname()[1]}"
        log.info("the page is at %s; Ctrl-C ends it", address)
        if open_browser:
            threading.Timer(0.5, webbrowser.open, (address,)).start()
        server.run([socket])


def build_app(sessions: LiveSessions, trainer: Trainer, service: ServiceClient, hosts: Sequence[str] = ()) -> FastAPI:
    """The application. hosts: names it may be reached by, besides this machine's own; a proxy's may have a port."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page of another site that the same browser shows could else reach us under a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*OWN_NAMES, *(host.partition(":")[0] for host in hosts)])
    app.mount("/page", StaticFiles(directory=PAGE))
    app.include_router(teach_router(trainer, hosts))
    app.include_router(service_router(service))
    app.include_router(pictograms_router(sessions, trainer.store))

    def add_page(name: str) -> None:
        app.add_api_route(f"/{name}", lambda: FileResponse(PAGE / f"{name}.html"), response_model=None)

    for name in ("live", "teach", "cameras"):
        add_page(name)

    @app.websocket("/live/feed")
    async def feed(socket: WebSocket) -> None:
        if not is_same_origin(socket, hosts):  # any site's page may open a WebSocket to us
            await socket.close(1008)
            return
        await socket.accept()
        queue = SendQueue()
        session = sessions.join(queue.put)

        def greet() -> None:
            queue.put({"hello": hello(sessions)})

        greet()
        if trainer.passed_over:
            queue.put({"error": trainer.passed_over})
        sessions.on_change.add(greet)
        sending = asyncio.create_task(queue.send(socket))
        try:
            with suppress(WebSocketDisconnect, RuntimeError):
                while True:
                    await _handle(await socket.receive(), session, queue, trainer.store, service)
        finally:
            sessions.on_change.discard(greet)
            sending.cancel()
            await asyncio.to_thread(session.close)

    return app


def hello(sessions: LiveSessions) -> dict[str, Any]:
    """What a page has to know of the model."""
    contract = sessions.recognizer.contract
    height, width = (max(2 * side, least) for side, least in zip(contract.cover_hw, LEAST_HW, strict=True))
    return {"model": contract.name, "labels": sorted({label for labels in contract.heads.values() for label in labels}),
            "heads": contract.heads, "background": contract.background, "width": width, "height": height,
            "sources": sessions.sources.shown, "any_source": sessions.sources.any_source,
            "sensitivity": sensitivity(contract), "clip_s": contract.clip_frames / contract.frame_rate}


class SendQueue:
    """What waits to be sent to one page: all messages, and the newest picture. `put` may come from any thread."""

    def __init__(self) -> None:
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._messages: list[dict[str, Any]] = []
        self._picture = b""

    def put(self, message: dict[str, Any], picture: bytes = b"", captured_at: float = 0.0) -> None:
        """Adds a message, and a picture if there is one."""
        self._loop.call_soon_threadsafe(self._add, message, picture and struct.pack("<d", captured_at) + picture)

    def _add(self, message: dict[str, Any], picture: bytes) -> None:
        self._messages.append(message)
        self._picture = b"" if "stopped" in message else picture or self._picture
        self._ready.set()

    async def send(self, socket: WebSocket) -> None:
        """Sends what comes, until the page has gone."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while await self._ready.wait():
                self._ready.clear()
                messages, picture, self._messages, self._picture = self._messages, self._picture, [], b""
                for message in messages:
                    await socket.send_text(json.dumps(message))
                if picture:
                    await socket.send_bytes(picture)


async def _handle(received: Any, session: LiveSession, queue: SendQueue, store: ClipStore,
                  service: ServiceClient) -> None:
    """Handles one message of a page. Raises WebSocketDisconnect."""
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    picture, of_camera = received.get("bytes"), False
    try:
        if picture is not None:
            [captured_at] = struct.unpack("<d", picture[:8])
            records = await asyncio.to_thread(session.recognize, picture[8:], captured_at)
            queue.put({"at": captured_at, "records": records})
            return
        request = dict(json.loads(received["text"]).items())
        if "threshold" in request:
            threshold = request["threshold"]
            await asyncio.to_thread(session.set_threshold, None if threshold is None else float(threshold))
        if "gates" in request:
            await asyncio.to_thread(session.show_gates, bool(request["gates"]))
        if "hidden" in request:
            session.set_visible(not request["hidden"])
        if "save" in request:
            part = request["save"]
            clip = await asyncio.to_thread(session.save_clip, store, str(part["label"]), float(part["from"]),
                                           float(part["to"]), str(part.get("place", "")))
            queue.put({"saved": asdict(clip)})
        of_camera = "source" in request or "service" in request
        if of_camera:
            queue.put({"stopped": True, "at": 0.0, "records": await asyncio.to_thread(session.stop)})
            if "service" in request:
                await asyncio.to_thread(session.start_service_camera, service, str(request["service"]))
            elif request["source"] is not None:
                await asyncio.to_thread(session.start_camera, str(request["source"]))
    except (GatestreamError, ValueError, TypeError, AttributeError, KeyError, struct.error) as error:
        if picture is not None:  # the page waits for an answer to each picture
            queue.put({"at": 0.0, "records": []})
        text = (str(error) if isinstance(error, GatestreamError) else
                "The page and its server do not understand one another: reload the page.")
        queue.put({"error": text} | ({"of": "camera"} if of_camera else {}))
