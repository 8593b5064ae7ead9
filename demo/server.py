"""The server behind the page: a WebSocket for each viewer of Live, and the page's files.

    browser ──► server   binary: time (float64, little-endian, Unix seconds) + JPEG; text: {"source": "sim://gestures"},
                         {"service": "cell-3"}, a camera of the service;
                         null for the browser's own camera; {"threshold": 0.9}, null for the model's;
                         {"gates": true}, records of gates come, too; {"hidden": true}, nobody sees the page;
                         {"keep": {"label": "wave", "from": time, "to": time}}, of what it showed
    server ──► browser   text: {"hello": {...}}, {"at": time, "records": [...]}, {"trouble": "a sentence"},
                         {"kept": {"label": "wave", "number": 3, ...}}
                         binary: time + JPEG, a picture of a camera that the server opened
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from demo.lessons import Lessons, Teacher
from demo.services import Service, looking
from demo.teaching import of_this_site, teaching
from demo.viewers import Outbox, Viewer, Viewers
from engines.errors import GatestreamError

log = logging.getLogger("gatestream.ui")

PAGE = Path(__file__).parent / "page"
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


def app_of(viewers: Viewers, teacher: Teacher, service: Service, hosts: tuple[str, ...] = ()) -> FastAPI:
    """The application. hosts: names it may be asked for by, besides this machine's own."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page of another site that the same browser shows could else reach us under a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*OWN_NAMES, *hosts])
    app.mount("/page", StaticFiles(directory=PAGE))
    app.include_router(teaching(teacher))
    app.include_router(looking(service))

    @app.get("/cameras")
    async def cameras() -> FileResponse:
        return FileResponse(PAGE / "cameras.html")

    @app.get("/live")
    @app.get("/teach")
    async def live() -> FileResponse:
        return FileResponse(PAGE / "live.html")

    @app.websocket("/live/feed")
    async def feed(socket: WebSocket) -> None:
        if not of_this_site(socket):  # any site's page may open a WebSocket to us
            await socket.close(1008)
            return
        await socket.accept()
        viewer, outbox = viewers.join(), Outbox()

        def greet() -> None:
            outbox.put({"hello": hello(viewers)})

        greet()
        viewers.changed.add(greet)
        sending = asyncio.create_task(_send(socket, outbox))
        try:
            with suppress(WebSocketDisconnect, RuntimeError):
                while True:
                    await _hear(await socket.receive(), viewer, outbox, teacher.lessons, service)
        finally:
            viewers.changed.discard(greet)
            sending.cancel()
            await asyncio.to_thread(viewer.leave)

    return app


def hello(viewers: Viewers) -> dict[str, Any]:
    """What a page has to know."""
    contract = viewers.recognizer.contract
    height, width = contract.cover_hw
    return {"model": contract.name, "labels": sorted({label for labels in contract.heads.values() for label in labels}),
            "background": contract.background, "width": 2 * width, "height": 2 * height,
            "threshold": contract.events.open_above, "clip_s": contract.clip_frames / contract.frame_rate}


async def _send(socket: WebSocket, outbox: Outbox) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            said, picture = await outbox.take()
            for one in said:
                await socket.send_text(json.dumps(one))
            if picture is not None:
                await socket.send_bytes(struct.pack("<d", picture[1]) + picture[0])


async def _hear(heard: dict[str, Any] | Any, viewer: Viewer, outbox: Outbox, lessons: Lessons,
                service: Service) -> None:
    """One message of a page. Raises WebSocketDisconnect."""
    if heard["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(heard.get("code", 1000))

    def told(records: list[dict[str, Any]], picture: bytes, at: float) -> None:
        outbox.put({"at": at, "records": records}, picture, at)

    def failed(trouble: str) -> None:
        outbox.put({"trouble": trouble})

    try:
        if (picture := heard.get("bytes")) is not None:
            [captured_at] = struct.unpack("<d", picture[:8])
            told(await asyncio.to_thread(viewer.see, picture[8:], captured_at), b"", captured_at)
        else:
            said = dict(json.loads(heard["text"]).items())
            if "threshold" in said:
                await asyncio.to_thread(viewer.tune, None if said["threshold"] is None else float(said["threshold"]))
            if "gates" in said:
                await asyncio.to_thread(viewer.show_gates, bool(said["gates"]))
            if "hidden" in said:
                viewer.look(not said["hidden"])
            if "keep" in said:
                kept = said["keep"]
                clip = await asyncio.to_thread(viewer.keep, lessons, str(kept["label"]), float(kept["from"]),
                                               float(kept["to"]))
                outbox.put({"kept": asdict(clip)})
            if "source" in said or "service" in said:
                closed = await asyncio.to_thread(viewer.stop)
                outbox.put({"at": 0.0, "records": closed})
                if "service" in said:
                    await asyncio.to_thread(viewer.follow, service, str(said["service"]), told, failed)
                elif said["source"] is not None:
                    await asyncio.to_thread(viewer.watch, str(said["source"]), told, failed)
    except GatestreamError as error:
        if heard.get("bytes") is not None:  # the page waits for an answer to each picture
            outbox.put({"at": 0.0, "records": []})
        failed(str(error))
    except (ValueError, TypeError, AttributeError, KeyError, struct.error):
        failed("The page and its server do not understand one another: reload the page.")
