"""Which worker of a cluster has which camera."""

from collections.abc import Mapping


class Placement:
    """Assigns cameras to workers: new ones go where the load is least, and stay, with their state, until that worker is
    lost. A camera's load is its weight. Belongs to the head's thread."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._workers_of: dict[str, str] = {}  # camera -> worker
        self._workers: list[str] = []

    def cameras(self, worker: str) -> list[str]:
        """Those of a worker, in the order in which they came."""
        return [camera for camera, own in self._workers_of.items() if own == worker]

    @property
    def unassigned(self) -> list[str]:
        """Cameras that no worker has: there is none."""
        return [camera for camera in self._weights if camera not in self._workers_of]

    def configure(self, weights: Mapping[str, float]) -> set[str]:
        """Takes all cameras with their loads; returns the workers whose cameras have changed."""
        changed = {self._workers_of.pop(camera) for camera in list(self._workers_of) if camera not in weights}
        self._weights = dict(weights)
        return changed | self._assign()

    def join(self, worker: str) -> set[str]:
        """Adds a worker, which takes unassigned cameras; returns the workers whose cameras have changed."""
        self._workers.append(worker)
        return self._assign()

    def lose(self, worker: str) -> tuple[list[str], set[str]]:
        """Removes a worker; returns the cameras it had, and the workers that have them now."""
        lost = self.cameras(worker)
        self._workers.remove(worker)
        for camera in lost:
            del self._workers_of[camera]
        return lost, self._assign()

    def load(self, worker: str) -> float:
        """The weights of a worker's cameras."""
        return sum(self._weights[camera] for camera in self.cameras(worker))

    def _assign(self) -> set[str]:
        changed = set()
        for camera in sorted(self.unassigned if self._workers else [], key=lambda camera: -self._weights[camera]):
            self._workers_of[camera] = min(self._workers, key=self.load)
            changed.add(self._workers_of[camera])
        return changed
