"""Which worker of a cluster has which camera. Sticky: a camera stays where its state is, until its worker is lost.

Plain bookkeeping: nothing here knows a process or a machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Placement:
    """Cameras of workers. A camera's load is its weight; new ones go where the load is least."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._homes: dict[str, str] = {}  # camera -> worker
        self._workers: list[str] = []

    def cameras(self, worker: str) -> list[str]:
        """Those of a worker, in the order in which they came."""
        return [camera for camera, home in self._homes.items() if home == worker]

    @property
    def homeless(self) -> list[str]:
        """Cameras that no worker has: there is none."""
        return [camera for camera in self._weights if camera not in self._homes]

    def configure(self, weights: Mapping[str, float]) -> set[str]:
        """Takes all cameras with their loads; the workers whose cameras are others now."""
        changed = {self._homes.pop(camera) for camera in list(self._homes) if camera not in weights}
        self._weights = dict(weights)
        return changed | self._place()

    def join(self, worker: str) -> set[str]:
        """A new worker, which takes cameras that have none, and no others; the workers that have changed."""
        self._workers.append(worker)
        return self._place()

    def lose(self, worker: str) -> tuple[list[str], set[str]]:
        """A worker is no more: the cameras it had, and the workers that have them now."""
        lost = self.cameras(worker)
        self._workers.remove(worker)
        for camera in lost:
            del self._homes[camera]
        return lost, self._place()

    def load(self, worker: str) -> float:
        """The weights of a worker's cameras."""
        return sum(self._weights[camera] for camera in self.cameras(worker))

    def _place(self) -> set[str]:
        if not self._workers:
            return set()
        return {self._placed(camera) for camera in self._heaviest_first(self.homeless)}

    def _heaviest_first(self, cameras: Iterable[str]) -> list[str]:
        return sorted(cameras, key=lambda camera: -self._weights[camera])

    def _placed(self, camera: str) -> str:
        home = self._homes[camera] = min(self._workers, key=self.load)
        return home
