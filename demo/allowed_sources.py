"""Which cameras the page may have the server open."""

from collections.abc import Sequence

from engines.errors import UsageError
from stream.sources import check_source
from stream.sources.address import mask_secrets, parse_scheme


class AllowedSources:
    """Webcams, simulated cameras and those that the operator listed; any other only where that is said.

        AllowedSources(["rtsp://me:secret@10.0.0.9/door"]).resolve("rtsp://10.0.0.9/door")  # with its password
    """

    def __init__(self, listed: Sequence[str] = (), any_source: bool = False) -> None:
        """listed: sources as of `gatestream run`. Raises UsageError for one that cannot be, or two that look alike."""
        self.any_source = any_source
        self._specs: dict[str, str] = {}
        for spec in listed:
            check_source(spec)
            shown = spec if parse_scheme(spec) in (None, "sim") else mask_secrets(spec)
            if self._specs.setdefault(shown, spec) != spec:
                raise UsageError(f"two sources shown as {shown}", "sources that differ by more than their passwords",
                                 "leave one out")

    @property
    def shown(self) -> list[str]:
        """Those listed, without passwords: what a page names them by."""
        return list(self._specs)

    def resolve(self, name: str) -> str:
        """The source that a page names. Raises UsageError for one that it may not open."""
        if name in self._specs:
            return self._specs[name]
        if self.any_source or name.isdecimal() or parse_scheme(name) == "sim":
            return name
        raise UsageError(f"{name!r}, a source that is not listed", "a webcam, sim://gestures or one that is listed",
                         "start the page with gatestream ui --source, or --any-source")
