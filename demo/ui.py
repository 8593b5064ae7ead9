"""`gatestream ui`: the page in a browser."""

import logging
import threading
import webbrowser
from pathlib import Path

import platformdirs
import uvicorn

from demo.basic_auth import BasicAuth, read_users
from demo.clip_store import ClipStore
from demo.live_sessions import LiveSessions
from demo.pages import mount_pages
from demo.server import build_app
from demo.service_api import ServiceClient
from demo.trainer import Trainer
from engines.errors import UsageError
from stream.recognizer import Recognizer
from stream.service.config import LOOPBACK, HealthConfig

log = logging.getLogger("gatestream.ui")

SLOTS = 32  # pages at a time, at most
PINGS_S = 2.0  # a page that is gone without a word frees its slot after two of these


def serve(model: str = "gesture", engine: str = "auto", host: str = "127.0.0.1", port: int = 7860,
          open_browser: bool = True, auth: Path | None = None, lessons: Path | None = None,
          service: str | None = None) -> None:
    """Serves the page until interrupted.

    auth: a file of users, who alone may see it; lessons: the folder of recordings and taught models, by default one of
    the person's own; service: address of the health page of a service to show, by default where a service without a
    configuration has it. Raises UsageError for a port that is taken, or a file that is none of users.
    """
    def open_recognizer(file: str) -> Recognizer:
        return Recognizer.open(file, engine, slots=SLOTS)

    users = None if auth is None else read_users(auth)
    local = host in LOOPBACK
    if users is None and not local:
        log.warning("everybody who reaches %s may use its cameras: let users in only, with --auth", host)
    store = ClipStore(lessons or platformdirs.user_data_path("gatestream", appauthor=False) / "lessons")
    trainer = Trainer(store, model, engine, lambda new: sessions.replace_recognizer(open_recognizer(new), new))
    recognizer = trainer.open_newest(open_recognizer)
    if trainer.model != model:
        log.info("in use is what %s was taught: %s", model, trainer.model)
    with LiveSessions(recognizer, trainer.model) as sessions:
        client = ServiceClient(service or str(HealthConfig().bind))
        app = mount_pages(build_app(sessions, trainer, client, () if local else ("*",)), engine, trainer)
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
