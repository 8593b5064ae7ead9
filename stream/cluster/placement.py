"""Which worker of a cluster has which camera."""

from collections.abc import Sequence
from itertools import chain


class Placement:
    """Assigns cameras to workers: new ones go to the worker that has fewest, and stay, with their state, until it is
    lost. Belongs to the head's thread."""

    def __init__(self) -> None:
        self.unassigned: list[str] = []  # cameras, while there is no worker
        self._cameras: dict[str, list[str]] = {}  # of each worker

    def cameras(self, worker: str) -> list[str]:
        """Those of a worker, in the order in which they came."""
        return list(self._cameras.get(worker, ()))

    def configure(self, cameras: Sequence[str]) -> set[str]:
        """Takes all cameras; returns the workers whose cameras have changed."""
        changed = {worker for worker, own in self._cameras.items() if not set(own) <= set(cameras)}
        for worker in changed:
            self._cameras[worker] = [camera for camera in self._cameras[worker] if camera in cameras]
        assigned = set(chain(*self._cameras.values()))
        self.unassigned = [camera for camera in cameras if camera not in assigned]
        return changed | self._assign()

    def join(self, worker: str) -> set[str]:
        """Adds a worker, which takes unassigned cameras; returns the workers whose cameras have changed."""
        self._cameras[worker] = []
        return self._assign()

    def lose(self, worker: str) -> tuple[list[str], set[str]]:
        """Removes a worker; returns the cameras it had, and the workers that have them now."""
        lost = self._cameras.pop(worker)
        self.unassigned += lost
        return lost, self._assign()

    def _assign(self) -> set[str]:
        changed = set()
        while self._cameras and self.unassigned:
            worker = min(self._cameras, key=lambda name: len(self._cameras[name]))
            self._cameras[worker].append(self.unassigned.pop(0))
            changed.add(worker)
        return changed
