"""The pages of the API; /docs lists them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from prometheus_client.exposition import choose_encoder
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse

from engines.errors import GatestreamError
from stream.access.tokens import PICTURES, READ
from stream.frame import Event
from stream.service.api.access import Access, Guard
from stream.service.config import Config
from stream.service.egress.health import Metrics
from stream.sinks.event_pages import find_row, read_page
from stream.sinks.live_feed import LiveFeed, Reader
from stream.sinks.log import clip_name

MOST_EVENTS = 1000  # of a page
PICTURE_S = 0.1  # between two pictures of a stream, at least
BOUNDARY = "picture"
Names = Annotated[list[str], Query(default_factory=list, description="Only of these; may be given more than once.")]
Time = Annotated[datetime | None, AfterValidator(lambda moment: None if moment is None else moment.timestamp()),
                 Query(description="2026-11-30T14:02 (local time here), 2026-11-30T13:02Z, or seconds as captured_at.")]


def build_app(config: Config, metrics: Metrics, live_feed: LiveFeed | None) -> FastAPI:
    """The application. live_feed: of cameras, where they may be looked at. Raises UsageError for a file of tokens that
    is none."""
    app = FastAPI(title="gatestream", version="1", docs_url=None, redoc_url=None, redirect_slashes=False,
                  description="Times are in seconds; records are those of `gatestream run --json`.")
    app.add_middleware(Guard, settings=config.api, counts=metrics.api)
    access = Access(config.api, metrics.api)
    read, pictures = access.needs(READ), access.needs(PICTURES)

    @app.exception_handler(GatestreamError)
    async def explain(_: Request, error: GatestreamError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_documentation(app.openapi()), headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    @app.get("/health", dependencies=[read], responses={503: {"description": "The service is not healthy."}})
    async def health() -> Response:
        """The state of the service and of its cameras."""
        state = metrics.state()
        return Response(json.dumps(state), 200 if state["healthy"] else 503, media_type="application/json")

    @app.get("/metrics", dependencies=[read])
    async def prometheus_metrics(request: Request) -> Response:
        """The same for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": content_type})

    # ---- events ----

    def event_log() -> Path:
        if config.results.log is None:
            raise HTTPException(404, "a service without an event log: set results.log of its configuration")
        return config.results.log.expanduser()

    def video_path(event: Event) -> Path | None:
        name = clip_name(str(event.id), event.camera, event.label)
        path = None if config.clips is None else config.clips.folder / name
        return path if path is not None and path.is_file() else None

    def as_json(event: Event) -> dict[str, Any]:
        path = video_path(event)
        video = {} if path is None else {"clip": path.name, "video": f"/events/{event.id}/video"}
        return {**event.as_json(), **video}

    def find_event(id: str) -> Event:
        row = find_row(event_log(), id)
        if row is None:
            raise HTTPException(404, f"no event {id} in the log")
        return read_page(event_log(), 1, row=row).events[0]

    @app.get("/events", dependencies=[read])
    def events(since: Time = None, until: Time = None, camera: str | None = None, label: str | None = None,
               head: str | None = None, after_id: str | None = None,
               cursor: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
               limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100,
               order: Literal["oldest", "newest"] = "oldest") -> JSONResponse:
        """Closed events that overlap a time, in the order in which they were logged; after_id: those after this one.
        `next` is the address of the next page, null on the last one."""
        if after_id is not None and (cursor := find_row(event_log(), after_id)) is None:
            raise HTTPException(404, f"no event {after_id} in the log: ask with since")
        rules: dict[str, Any] = {"camera": camera, "label": label, "head": head, "since": since, "until": until}
        page = read_page(event_log(), limit, newest_first=order == "newest", cursor=cursor, **rules)
        query = {**rules, "limit": limit, "order": order, "cursor": page.more}
        following = urlencode({key: value for key, value in query.items() if value is not None})
        return JSONResponse({"events": [as_json(event) for event in page.events],
                             "next": page.more and f"/events?{following}"})

    @app.get("/events/{id}", dependencies=[read])
    def one_event(id: str) -> JSONResponse:
        """One event."""
        return JSONResponse(as_json(find_event(id)))

    @app.get("/events/{id}/video", dependencies=[pictures], response_class=FileResponse)
    def video(id: str) -> FileResponse:
        """The video of an event, MP4. Takes Range."""
        _shown()
        path = video_path(find_event(id))
        if path is None:
            raise HTTPException(404, f"no video of event {id}: none is made, or it is not written yet")
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private"})

    # ---- cameras ----

    @app.get("/cameras", dependencies=[read])
    async def cameras() -> JSONResponse:
        """The state of each camera."""
        return JSONResponse([{"name": name, **state} for name, state in metrics.state()["cameras"].items()])

    def _shown() -> LiveFeed:
        if live_feed is None:
            raise HTTPException(403, "cameras are not shown here: see health.pictures of the configuration")
        return live_feed

    @app.get("/cameras/{name:path}.jpg", dependencies=[pictures], include_in_schema=False)
    @app.get("/cameras/{name:path}/picture.jpg", dependencies=[pictures])  # comes first: decorators go upwards
    def picture(name: str) -> Response:
        """A camera's newest picture."""
        found = _shown().picture(name)
        if found is None:
            raise HTTPException(404, f"no picture of camera {name!r}")
        return Response(found, media_type="image/jpeg")

    @app.get("/cameras/{name:path}/stream.mjpg", dependencies=[pictures])
    async def mjpeg(name: str, request: Request) -> StreamingResponse:
        """A camera's pictures as they come, up to ten a second (multipart/x-mixed-replace)."""
        feed = _shown()
        if feed.newest(name) is None:
            raise HTTPException(404, f"no picture of camera {name!r}")

        async def stream() -> AsyncIterator[bytes]:
            last = None
            while not feed.ended and not access.refusal(request, PICTURES):
                before, last = last, feed.newest(name)
                if last is not before and (jpeg := await run_in_threadpool(feed.picture, name)) is not None:
                    yield (f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                           .encode() + jpeg + b"\r\n")
                await asyncio.sleep(PICTURE_S)

        return StreamingResponse(stream(), media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    # ---- live records ----

    async def records(reader: Reader, connection: HTTPConnection) -> AsyncIterator[list[str]]:
        """Batches of records as JSON, until the service ends or the token is revoked."""
        while not access.refusal(connection, READ) and (lines := await reader.get()) is not None:
            yield lines

    def stream_lines(request: Request, cameras: list[str], types: list[str], form: Callable[[list[str]], str],
                     media_type: str) -> StreamingResponse:
        feed = _shown()

        async def stream() -> AsyncIterator[str]:
            with feed.reader(cameras, types) as reader:
                async for lines in records(reader, request):
                    yield form(lines)

        return StreamingResponse(stream(), media_type=media_type)

    @app.get("/cameras/{name:path}/live", dependencies=[read])
    async def camera_live(name: str, request: Request) -> StreamingResponse:
        """A camera's records as they come, an array of them a line; an empty one at least every second."""
        return stream_lines(request, [name], [], lambda lines: f"[{','.join(lines)}]\n", "application/jsonl")

    @app.get("/live/sse", dependencies=[read])
    async def server_sent_events(request: Request, camera: Names, type: Names) -> StreamingResponse:
        """Records as they come, as server-sent events. One of type `missed` counts those that a slow reader lost."""
        return stream_lines(request, camera, type, lambda lines: "".join(f"data: {line}\n\n" for line in lines)
                            or ": nothing\n\n", "text/event-stream")

    @app.websocket("/live", dependencies=[read])
    async def web_socket(socket: WebSocket, camera: Names, type: Names) -> None:
        feed = _shown()
        await socket.accept()
        with suppress(WebSocketDisconnect, RuntimeError), feed.reader(camera, type) as reader:
            gone = asyncio.create_task(_until_gone(socket))
            async for lines in records(reader, socket):
                for line in lines:
                    await socket.send_text(line)
                if gone.done():
                    return
            gone.cancel()
            await socket.close(1001)

    return app


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _documentation(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page without scripts."""
    rows = [(method.upper(), path, ", ".join(one["name"] for one in page.get("parameters", ())),
             page.get("description", ""))
            for path, methods in schema["paths"].items() for method, page in methods.items()]
    rows.append(("WebSocket", "/live", "camera, type", "Records as they come, one JSON object a message."))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in rows)
    return ("<!doctype html><meta charset=utf-8><title>gatestream</title>"
            "<style>body{font:1rem sans-serif;margin:2rem}td{padding:.3rem .8rem;vertical-align:top}</style>"
            f"<h1>gatestream</h1><p>{escape(schema['info']['description'])} For programs: <a href=openapi.json>"
            f"openapi.json</a></p><table>{body}</table>")
