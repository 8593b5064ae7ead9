"""Every error gatestream raises on purpose.

    GatestreamError
    ├── UsageError      the caller asked for something that cannot be (exit code 2)
    ├── ModelError      a model file is missing, damaged, or does not fit its contract
    ├── EngineError     an engine cannot be built, loaded or run
    ├── SourceError     a camera, file or stream cannot be opened or read
    ├── FrameError      one frame is refused; it costs that frame and nothing else
    ├── SinkError       a result cannot be written
    └── DatasetError    training or evaluation data is missing or inconsistent

A message always has three parts: what was got, what was wanted, what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class GatestreamError(Exception):
    """Base of the tree. `got`, `wanted` and `do` are short phrases without a full stop."""

    exit_code = 1

    def __init__(self, got: str, wanted: str, do: str) -> None:
        self.got, self.wanted, self.do = got, wanted, do
        super().__init__(f"{got}; wanted {wanted}; {do}")

    def __reduce__(self) -> tuple[type[GatestreamError], tuple[str, str, str]]:
        return type(self), (self.got, self.wanted, self.do)


class UsageError(GatestreamError):
    """The caller asked for something that cannot be: an unknown name, a missing file, a bad option."""

    exit_code = 2


class ModelError(GatestreamError):
    """A model file is missing, damaged, of another format, or disagrees with its contract."""


class EngineError(GatestreamError):
    """An engine cannot be built, loaded or run on this machine."""


class SourceError(GatestreamError):
    """A camera, file or stream cannot be opened, or stopped and did not come back."""


class FrameError(GatestreamError):
    """One frame is refused: wrong shape, wrong type, absurd size. The stream goes on."""


class SinkError(GatestreamError):
    """A result cannot be written: no permission, no space, no such folder."""


class DatasetError(GatestreamError):
    """Training or evaluation data is missing, unreadable or inconsistent."""


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C: an extension module that is being loaded makes an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def raise_interrupt(error: Exception) -> None:
    """Raises KeyboardInterrupt where that is what `error` came of."""
    if is_interrupt(error):
        raise KeyboardInterrupt from error


@contextmanager
def imports_of(extra: str, packages: str, use: str, otherwise: str = "",
               error_type: type[GatestreamError] = UsageError) -> Iterator[None]:
    """Around imports of `packages` that only an extra of gatestream installs: says so where they cannot be imported.

        with imports_of("mqtt", "paho-mqtt", "results over MQTT"):
            import paho.mqtt

    otherwise: what else one may do.
    """
    try:
        yield
    except ImportError as error:
        raise_interrupt(error)
        raise error_type(f"{use} without a usable {packages} ({error})", packages,
                         f"pip install 'gatestream[{extra}]'{otherwise and ', or '}{otherwise}") from error


# What leads to these packages without a word of its own is asked for by name: see `missing_package`.
EXTRAS = {"torch": ("train", "torch"), "sklearn": ("train", "scikit-learn"), "scipy": ("teach", "scipy"),
          "matplotlib": ("train", "matplotlib"), "PIL": ("train", "pillow")}


def missing_package(error: BaseException) -> UsageError | None:
    """What to install, where an import failed for want of a package that an extra of gatestream installs."""
    name = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if name not in EXTRAS:
        return None
    extra, package = EXTRAS[name]
    return UsageError(f"a command that needs {package}, which cannot be imported ({error})", package,
                      f"pip install 'gatestream[{extra}]'")


def require(*modules: str) -> None:
    """Raises UsageError where one of these packages of EXTRAS is missing: before work that would end there."""
    for module in modules:
        if find_spec(module) is None:
            raise missing_package(ModuleNotFoundError(f"No module named {module!r}", name=module)) or AssertionError


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message; its type's name if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def engine_error(got: str, wanted: str, do: str, kinds: type[Exception] | tuple[type[Exception], ...] = RuntimeError,
                 line: Callable[[BaseException], str] = first_line) -> Iterator[None]:
    """Makes an EngineError of a library's errors of these kinds, with that line of their message behind `got`."""
    try:
        yield
    except EngineError:
        raise
    except kinds as error:
        raise_interrupt(error)
        raise EngineError(f"{got} ({line(error)})", wanted, do) from error


def first_problem(error: ValidationError) -> tuple[str, str]:
    """What was got and what was wanted, of the first problem that pydantic found."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, first["loc"]))
    if field:
        return f"no {field}" if first["type"] == "missing" else f"{field}={first['input']!r:.80}", message
    got, _, wanted = message.partition(": ")
    return got, wanted
