"""What the Teach page asks for: recordings shown and cut, a model that learns them. JSON both ways.

    GET  /teach/state                              what there is, see `Teacher.state`
    GET  /teach/clips/{label}/{number}.mp4         a recording, whole
    GET  /teach/model                              the newest model's file
    POST /teach/clips?label=wave                   a video file as the body
    POST /teach/cut, /teach/remove                 {"label": "wave", "number": 3, "from": 0.5, "to": 2.0}
    POST /teach/learn, /teach/undo

A fault is {"trouble": "a sentence"}, status 400.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from demo.lessons import Teacher
from engines.errors import GatestreamError

LARGEST_BYTES = 4 * 1024**3  # of a video that is uploaded


class Which(BaseModel):
    """A recording."""

    label: str
    number: int


class Part(Which):
    """A part of it, in seconds."""

    from_s: float = Field(alias="from")
    to_s: float = Field(alias="to")


def of_this_site(asking: HTTPConnection) -> bool:
    """Whether it is a page of ours that asks, and not another site's in the same browser."""
    return urlsplit(asking.headers.get("origin", "")).netloc == asking.headers.get("host")


def _only_of_this_site(request: Request) -> None:
    if not of_this_site(request):
        raise HTTPException(403)


def teaching(teacher: Teacher) -> APIRouter:
    """See the file's top."""
    router, lessons = APIRouter(prefix="/teach"), teacher.lessons
    ours = [Depends(_only_of_this_site)]

    async def answer(work: Callable[[], Any], file: str = "") -> JSONResponse:
        """What all but files are answered with: the state after the work. file: is not named in a fault."""
        try:
            await asyncio.to_thread(work)
        except GatestreamError as error:
            return JSONResponse({"trouble": str(error).replace(file, "this file") if file else str(error)}, 400)
        return JSONResponse(await asyncio.to_thread(teacher.state))

    @router.get("/state")
    async def state() -> JSONResponse:
        return await answer(lambda: None)

    @router.get("/clips/{label}/{number}.mp4", response_model=None)
    async def clip(label: str, number: int) -> FileResponse | JSONResponse:
        try:
            return FileResponse(lessons.path(label, number, whole=True), media_type="video/mp4")
        except GatestreamError as error:
            return JSONResponse({"trouble": str(error)}, 404)

    @router.get("/model")
    async def model() -> FileResponse:
        path = Path(teacher.model)
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, filename=f"taught-{path.name}")

    @router.post("/clips", dependencies=ours)
    async def add(label: str, request: Request) -> JSONResponse:
        with tempfile.NamedTemporaryFile(prefix="gatestream-", suffix=".video") as video:
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BYTES:
                    return JSONResponse({"trouble": f"this video is larger than {LARGEST_BYTES >> 30} GiB"}, 400)
                await asyncio.to_thread(video.write, part)
            video.flush()
            return await answer(lambda: lessons.add_file(label, Path(video.name)), video.name)

    @router.post("/cut", dependencies=ours)
    async def cut(part: Part) -> JSONResponse:
        return await answer(lambda: lessons.cut(part.label, part.number, part.from_s, part.to_s))

    @router.post("/remove", dependencies=ours)
    async def remove(which: Which) -> JSONResponse:
        return await answer(lambda: lessons.remove(which.label, which.number))

    @router.post("/learn", dependencies=ours)
    async def learn() -> JSONResponse:
        return await answer(teacher.learn)

    @router.post("/undo", dependencies=ours)
    async def undo() -> JSONResponse:
        return await answer(teacher.undo)

    return router
