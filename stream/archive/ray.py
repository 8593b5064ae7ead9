"""Ray, started or joined. It reports to nobody, and listens on loopback where it is started for this machine alone."""

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engines.errors import imports_of


@contextmanager
def connect_ray(address: str | None) -> Iterator[Any]:
    """The module, connected to the cluster at an address, or to a new one of this machine if None.
    It is left as it was found. Raises UsageError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with imports_of("cluster", "Ray", "a cluster"):
        ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    alone = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    terminated = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, configure_logging=False, log_to_driver=True, **alone)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own there
    try:
        yield ray
    finally:
        ray.shutdown()
