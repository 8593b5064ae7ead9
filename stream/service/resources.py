"""What runs out before a service fails: disk space and file descriptors."""

import logging
import os
import resource
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("gatestream.service")

PERIOD_S = 2.0  # between two looks
FREE_MB = 200
FILES_SHARE = 0.9  # of the descriptors that there may be
MOST_FILES = 65_536  # descriptors: some libraries look at each number


class ResourceMonitor:
    """Looks again and again what is short (`faults`), in a thread of its own: a disk that is away may hold it up."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders, self._closed = set(folders), threading.Event()
        self.faults: dict[str, str] = {}
        threading.Thread(target=self._run, name="resources", daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            before, self.faults = self.faults, find_shortages(self._folders)
            for part in self.faults.keys() - before:
                log.warning("%s: %s", part, self.faults[part])
            self._closed.wait(PERIOD_S)


def find_shortages(folders: Iterable[Path]) -> dict[str, str]:
    """What is nearly used up, and how much is left."""
    found = {}
    for folder in folders:
        with suppress(OSError):  # the sink that needs the folder says more
            if (free := shutil.disk_usage(folder).free) < FREE_MB * 1e6:
                found[f"disk of {folder}"] = f"{free / 1e6:.0f} MB free, less than {FREE_MB}: make room"
    most = file_limit()
    try:
        used = len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:  # a system that does not say
        used = 0
    except OSError:  # not even one is left for this
        used = most
    if used > FILES_SHARE * most > 0:
        found["file descriptors"] = f"{used} of {most} are open: raise the limit (LimitNOFILE), or look who connects"
    return found


def file_limit() -> int:
    """How many files this process may have open; MOST_FILES where nothing limits it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if limit == resource.RLIM_INFINITY else limit


def raise_file_limit() -> None:
    """Lets this process and those that it starts open as many files as the system allows, up to MOST_FILES."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if wanted > file_limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
