"""A running `gatestream serve`, shown by the page: its cameras, their pictures, its event log.

    GET /service/state                    {"health": what /health has, or null, "address": ..., "error": "a sentence"}
    GET /service/cameras/{name}.jpg       a camera's newest picture
    GET /service/events?camera=&label=    {"events": [...], "labels": [...], "total": n}, the newest first
    GET /service/events.csv, .jsonl       to take away
    GET /service/clips/{name}             the video of an event
"""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from engines.errors import GatestreamError, SourceError, UsageError
from stream.sinks.export import export
from stream.sinks.log import clip_name, count_events, read_events

ADDRESS = re.compile(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", re.ASCII)
PATIENCE_S = 3.0
TOKEN = "GATESTREAM_TOKEN"  # environment variable


class ServiceClient:
    """A client of the service whose /health is served at host:port. For any thread. A service that asks for a token is
    given that of the environment variable GATESTREAM_TOKEN. Raises UsageError for another address."""

    def __init__(self, address: str) -> None:
        if not ADDRESS.fullmatch(address):
            raise UsageError(f"the service {address!r}", "host:port of its health page", "correct --service")
        self.address = address
        token = os.environ.get(TOKEN)
        self._client = httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S, trust_env=False,
                                    headers={"Authorization": f"Bearer {token}"} if token else None)

    def health(self) -> dict[str, Any]:
        """The object that /health serves. Raises SourceError where none answers, or one that wants another token."""
        try:
            answer = self._client.get("/health")
            if answer.status_code in (401, 403):
                raise SourceError(f"no token for the service at {self.address}",
                                  "one with the rights read and pictures", f"set {TOKEN} to one")
            return dict(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
            raise SourceError(f"no service at {self.address}", "a running gatestream serve",
                              "start it, or name the address of its health page with --service") from error

    def picture(self, camera: str) -> bytes | None:
        """A camera's newest picture as a JPEG, None where there is none."""
        try:
            answer = self._client.get(f"/cameras/{quote(camera, safe='')}.jpg")
        except httpx.HTTPError:
            return None
        return answer.content if answer.status_code == 200 else None

    def follow(self, camera: str) -> Iterator[list[dict[str, Any]]]:
        """A camera's records as they come; an empty list from time to time. Ends with the service. Raises SourceError
        where the service does not show it."""
        try:
            with self._client.stream("GET", f"/cameras/{quote(camera, safe='')}/live") as answer:
                if answer.status_code != 200:
                    raise SourceError(f"a service that does not show {camera}", "one that does",
                                      "set health.pictures in its configuration")
                for line in answer.iter_lines():
                    yield json.loads(line)
        except httpx.HTTPError as error:
            raise SourceError(f"no service at {self.address} any more", "one that goes on",
                              "press Start once it runs again") from error

    def close(self) -> None:
        """Ends all connections, and with them every `follow`."""
        self._client.close()


def service_router(service: ServiceClient) -> APIRouter:
    """The routes under /service."""
    router = APIRouter(prefix="/service")

    def health() -> dict[str, Any]:
        try:
            return service.health()
        except GatestreamError as error:
            raise HTTPException(503, str(error)) from error

    @router.get("/state")
    def state() -> JSONResponse:
        try:
            return JSONResponse({"address": service.address, "health": service.health(), "error": ""})
        except GatestreamError as error:
            return JSONResponse({"address": service.address, "health": None, "error": str(error)})

    @router.get("/cameras/{name:path}.jpg")
    def picture(name: str) -> Response:
        found = service.picture(name)
        if found is None:
            raise HTTPException(404)
        return Response(found, media_type="image/jpeg",
                        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    @router.get("/events")
    def events(camera: str = "", label: str = "", last: int = 100) -> JSONResponse:
        facts = health()
        try:
            log = _log(facts)
            found = read_events(log, camera=camera or None, label=label or None, newest=last)
            counts = count_events(log)
        except GatestreamError as error:
            return JSONResponse({"error": str(error), "events": [], "labels": [], "total": 0})
        chosen = [counts.get(camera, Counter())] if camera else counts.values()
        total = sum(of_one[label] if label else of_one.total() for of_one in chosen)
        newest = sorted(found, key=lambda one: one.event.started_at, reverse=True)
        rows = [{**one.event.as_json(), "id": one.id, "clip": _clip(facts, one.id, one.event.camera, one.event.label)}
                for one in newest]
        return JSONResponse({"error": "", "events": rows, "total": total,
                             "labels": sorted(set().union(*counts.values()))})

    @router.get("/events.{form}")
    def download(form: Literal["csv", "jsonl"], camera: str = "", label: str = "") -> Response:
        out, facts = io.StringIO(newline=""), health()
        try:
            export(_log(facts), out, form, camera=camera or None, label=label or None)
        except GatestreamError as error:
            return PlainTextResponse(str(error), 400)
        return Response(out.getvalue(), media_type="text/csv" if form == "csv" else "application/jsonl",
                        headers={"Content-Disposition": f"attachment; filename=events.{form}"})

    @router.get("/clips/{name}")
    def clip(name: str) -> FileResponse:
        folder = health()["clips_folder"]
        path = Path(folder or "") / Path(name).name
        if folder is None or path.suffix != ".mp4" or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4")

    return router


def _log(health: dict[str, Any]) -> Path:
    """Raises SourceError where there is none on this machine."""
    if health["log"] is None:
        raise SourceError("a service without an event log", "one with a log", "set results.log in its configuration")
    if not Path(health["log"]).is_file():
        raise SourceError(f"{health['log']}, which is not on this machine", "the log of the service",
                          "open this page on the service's machine")
    return Path(health["log"])


def _clip(health: dict[str, Any], id: str, camera: str, label: str) -> str | None:
    name = clip_name(id, camera, label)
    folder = health["clips_folder"]
    return name if folder is not None and (Path(folder) / name).is_file() else None
