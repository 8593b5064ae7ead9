"""A stage between the recogniser and the sinks: records in, records out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from stream.frame import Frame, Record


class Stage(ABC):
    """Changes, adds or takes away records: smoothing, procedures, privacy. Stages stand one behind the other, in `run`
    as in a service. Records of types that it does not know pass as they are. It belongs to one thread."""

    @abstractmethod
    def process(self, frame: Frame | None, records: Sequence[Record]) -> Sequence[Record]:
        """The records that go on, for those that came with a camera frame, if any: some at a time, of several cameras
        in a service. frame: None there, and for records without an image."""
