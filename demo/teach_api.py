"""The HTTP routes of the Teach page: recordings are stored and cut, a model learns them. JSON both ways.

    GET  /teach/state                              what there is, see `Trainer.state`
    GET  /teach/clips/{label}/{number}.mp4         a recording, whole
    GET  /teach/model                              the newest model's file
    POST /teach/clips?label=wave&place=kitchen     a video file as the body
    POST /teach/cut, /teach/remove                 {"label": "wave", "number": 3, "from": 0.5, "to": 2.0}
    POST /teach/learn                              {"start": "base", "hands": true}, either may be left out
    POST /teach/undo

An error is {"error": "a sentence"}, status 400.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, Depends, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import HTTPConnection

from demo.trainer import BASE, Trainer
from engines.errors import GatestreamError
from engines.runtime.temporary import temporary_dir

LARGEST_BYTES = 4 * 1024**3  # of a video that is uploaded


Label, Number = Annotated[str, Body()], Annotated[int, Body()]


def is_same_origin(request: HTTPConnection, hosts: Sequence[str] = ()) -> bool:
    """Whether the request comes from a page of ours, not from another site's page in the same browser.
    hosts: names that a proxy serves our pages under, whatever Host it sends."""
    origin = urlsplit(request.headers.get("origin", "")).netloc
    return origin == request.headers.get("host") or origin in hosts


def teach_router(trainer: Trainer, hosts: Sequence[str] = ()) -> APIRouter:
    """The routes under /teach. hosts: as for `is_same_origin`."""
    def require_same_origin(request: Request) -> None:
        if not is_same_origin(request, hosts):
            raise HTTPException(403)

    router, store = APIRouter(prefix="/teach"), trainer.store
    same_origin = [Depends(require_same_origin)]

    def answer(work: Callable[[], object], file: str = "") -> JSONResponse:
        """Does the work, answers with the state after it. file: a path that an error must not show."""
        try:
            work()
        except GatestreamError as error:
            return JSONResponse({"error": str(error).replace(file, "this file") if file else str(error)}, 400)
        return JSONResponse(trainer.state())

    @router.get("/state")
    def state() -> JSONResponse:
        return JSONResponse(trainer.state())

    @router.get("/clips/{label}/{number}.mp4", response_model=None)
    def clip(label: str, number: int) -> FileResponse | JSONResponse:
        try:
            return FileResponse(store.find(label, number, whole=True), media_type="video/mp4")
        except GatestreamError as error:
            return JSONResponse({"error": str(error)}, 404)

    @router.get("/model")
    def model() -> FileResponse:
        path = Path(trainer.model)
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, filename=f"taught-{path.name}")

    @router.post("/clips", dependencies=same_origin)
    async def add(label: str, request: Request, place: str = "") -> JSONResponse:
        with temporary_dir() as folder, (folder / "upload.video").open("wb") as video:
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BYTES:
                    return JSONResponse({"error": f"this video is larger than {LARGEST_BYTES >> 30} GiB"}, 400)
                await asyncio.to_thread(video.write, part)
            video.flush()
            return await asyncio.to_thread(answer, lambda: store.add_file(label, Path(video.name), place), video.name)

    @router.post("/cut", dependencies=same_origin)
    def cut(label: Label, number: Number, from_s: Annotated[float, Body(alias="from")],
            to_s: Annotated[float, Body(alias="to")]) -> JSONResponse:
        return answer(lambda: store.trim(label, number, from_s, to_s))

    @router.post("/remove", dependencies=same_origin)
    def remove(label: Label, number: Number) -> JSONResponse:
        return answer(lambda: store.remove(label, number))

    @router.post("/learn", dependencies=same_origin)
    def learn(start: Annotated[str, Body()] = BASE, hands: Annotated[bool, Body()] = True) -> JSONResponse:
        return answer(lambda: trainer.train(start, hands))

    @router.post("/undo", dependencies=same_origin)
    def undo() -> JSONResponse:
        return answer(trainer.undo)

    return router
