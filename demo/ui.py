"""`gatestream ui`: the page in a browser."""

from __future__ import annotations

import logging
import threading
import webbrowser
from pathlib import Path

import platformdirs
import uvicorn

from demo.lessons import Lessons, Teacher
from demo.pages import mounted
from demo.server import app_of
from demo.services import Service
from demo.users import Guard, read
from demo.viewers import Viewers
from engines.errors import UsageError
from stream.recognizer import Recognizer
from stream.service.config import LOOPBACK, HealthConfig

log = logging.getLogger("gatestream.ui")

SLOTS = 32  # viewers at a time, at most
PINGS_S = 2.0  # a page that is gone without a word gives its place back after two of these


def serve(model: str = "gesture", engine: str = "auto", host: str = "127.0.0.1", port: int = 7860,
          open_browser: bool = True, auth: Path | None = None, lessons: Path | None = None,
          service: str | None = None) -> None:
    """Serves the page until interrupted. auth: a file of users, who alone may see it; lessons: the folder of what is
    taught, by default one of the person's own; service: address of the health page of a service to look at,
    by default where a service without a configuration has it.

    Raises UsageError for a port that is taken, or a file that is none of users."""
    users = None if auth is None else read(auth)
    alone = host in LOOPBACK
    if users is None and not alone:
        log.warning("everybody who reaches %s may use its cameras: let users in only, with --auth", host)
    shown = Lessons(lessons or platformdirs.user_data_path("gatestream", appauthor=False) / "lessons")
    teacher = Teacher(shown, model, engine, lambda new: viewers.use(Recognizer.open(new, engine, slots=SLOTS), new))
    recognizer = teacher.opened(lambda newest: Recognizer.open(newest, engine, slots=SLOTS))
    if teacher.model != model:
        log.info("in use is what %s was taught: %s", model, teacher.model)
    with Viewers(recognizer, teacher.model) as viewers:
        looked_at = Service(service or str(HealthConfig().bind))
        app = mounted(app_of(viewers, teacher, looked_at, () if alone else ("*",)), engine, teacher)
        config = uvicorn.Config(app if users is None else Guard(app, users), host=host, port=port, log_level="warning",
                                ws_ping_interval=PINGS_S, ws_ping_timeout=PINGS_S, timeout_graceful_shutdown=1)
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
