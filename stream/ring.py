"""The last rows of a series, in memory of fixed size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ring:
    """The newest `capacity` rows of a series, readable oldest first without copying.
    Every row is written twice, `capacity` apart, so the newest rows always lie side by side somewhere."""

    def __init__(self, capacity: int, width: int) -> None:
        self._rows = np.zeros((2 * capacity, width), np.float32)
        self._capacity, self._written = capacity, 0

    def __len__(self) -> int:
        return min(self._written, self._capacity)

    def append(self, row: Any) -> None:
        """Adds a row in place of the oldest one when the ring is full."""
        self._written += 1
        self.replace_newest(row)

    def replace_newest(self, row: Any) -> None:
        """Overwrites the newest row."""
        place = (self._written - 1) % self._capacity
        self._rows[place] = self._rows[place + self._capacity] = row

    def rows(self) -> NDArray[np.float32]:
        """The rows held, oldest first: a view [len, width], valid until the next append."""
        start = self._written % self._capacity if self._written >= self._capacity else 0
        return self._rows[start : start + len(self)]

    def clear(self) -> None:
        """Forgets all rows."""
        self._written = 0
