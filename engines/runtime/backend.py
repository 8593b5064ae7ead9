"""What there is to know of an engine, and what all engines share: proof, choice of precision, and the cache.

An engine is a file of this folder with a `BACKEND`, and its name in `registry.ENGINES`:

    def open_toy(spec: Spec, precision: str, folder: Path, facts: Facts) -> Engine:
        return ToyEngine(spec.model.network, spec.model.contract, spec.slots)

    BACKEND = Backend("toy", "Toy", precisions=lambda: ("f32",), open=open_toy)

`engines.compile`, `auto`, `doctor`, `bench` and the command line then know it. Its file imports torch inside its
functions: `auto` reads it to learn whether it can run here.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.runtime import cache
from engines.runtime.cache import Facts as Facts
from engines.runtime.engine import Engine
from engines.runtime.parity import SPREAD_TOLERANCE, TOLERANCE, Parity, compare, probe_clip, run_clip

if TYPE_CHECKING:
    from engines.model.file import Model

log = logging.getLogger("gatestream.engines")

NO_GPU = "no NVIDIA GPU that torch can use"
BY_PARITY = "by parity"
Frames = NDArray[np.uint8]
_ONE_THREAD = threading.Lock()


@dataclass(frozen=True, slots=True)
class Spec:
    """What an engine is asked for."""

    model: Model
    slots: int = 1
    precision: str | None = None  # None: the fastest that agrees with eager
    calibration_u8: Frames | None = None  # for int8: BGR [T, H, W, 3] in order from one camera


@dataclass(frozen=True)
class Backend:
    """One engine. Its functions raise EngineError."""

    name: str
    title: str  # as messages call it
    precisions: Callable[[], Sequence[str]]  # what this machine has, the fastest first
    open: Callable[[Spec, str, Path, Facts], Engine]  # in a precision, from what `build` made
    build: Callable[[Spec, str, Path], Facts] | None = None  # writes files to be kept; None where `open` compiles
    tune: Callable[[Spec, str, Path], Facts] | None = None  # measures what makes a proven build faster
    key: Callable[[Spec], Mapping[str, str]] = lambda spec: {}  # what a build depends on besides model and code
    on_request: Sequence[str] = ()  # precisions that are never chosen
    unavailable_reason: Callable[[], str | None] = lambda: None  # why `auto` passes over it on this machine
    remedy: tuple[str, str] | None = None  # what is wanted and to be done where it is unavailable, if it needs that
    is_reference: bool = False  # eager: what others are compared with; the only one for bidirectional models


def compile_spec(backend: Backend, spec: Spec) -> Engine:
    """An engine that agrees with eager: compiled, or from the cache, or built into it."""
    precisions = _precisions(backend, spec)
    if backend.is_reference:
        return backend.open(spec, precisions[0], Path(), {})
    if backend.build is None:
        return _prove(backend, spec, precisions, lambda precision: backend.open(spec, precision, Path(), {}))[0]
    return open_entry(backend, spec, get_or_build(backend, spec))


def open_entry(backend: Backend, spec: Spec, entry: cache.Entry) -> Engine:
    """The engine of a cache entry."""
    return backend.open(spec, str(entry.facts["precision"]), entry.folder, entry.facts)


def get_or_build(backend: Backend, spec: Spec) -> cache.Entry:
    """The cache entry of an engine, built and proven if need be."""
    _precisions(backend, spec)

    def build(folder: Path) -> Facts:
        name = spec.model.contract.name
        log.warning("building the %s engine of %s for this machine, once", backend.title, name)
        began = time.perf_counter()
        facts = build_proven(backend, spec, folder)
        log.warning("built in %.1f s: %s", time.perf_counter() - began, facts["precision"])
        return facts

    return cache.get_or_build(key_of(backend, spec), build)


def key_of(backend: Backend, spec: Spec) -> dict[str, str]:
    """Everything that a built engine depends on."""
    code = source_hash(Path(inspect.getfile(backend.open)))
    return {"model": spec.model.digest, "engine": backend.name, "code": code,
            "precision": spec.precision or BY_PARITY, **backend.key(spec)}


def build_proven(backend: Backend, spec: Spec, folder: Path) -> Facts:
    """Builds into a folder in the fastest precision that agrees with eager, measuring what was written.

    Returns what `build` and `tune` return, with {"precision": ..., "parity": {precision: fields of Parity}}.
    """
    facts: Facts = {}

    def build_and_open(precision: str) -> Engine:
        facts.update(_build(backend, spec, precision, folder))
        return backend.open(spec, precision, folder, facts)

    engine, parity = _prove(backend, spec, _precisions(backend, spec), build_and_open)
    engine.close()
    if backend.tune is not None:
        facts |= backend.tune(spec, engine.precision, folder)
    return facts | {"precision": engine.precision, "parity": {name: asdict(found) for name, found in parity.items()}}


def open_unproven(backend: Backend, spec: Spec) -> Engine:
    """An engine that is compared with nothing and kept nowhere, for timing. Needs a precision."""
    (precision,) = _precisions(backend, spec)[:1]
    if backend.build is None:
        return backend.open(spec, precision, Path(), {})
    folder = cache.make_temporary_dir()
    return backend.open(spec, precision, folder, _build(backend, spec, precision, folder))


def _build(backend: Backend, spec: Spec, precision: str, folder: Path) -> Facts:
    assert backend.build is not None
    with one_torch_thread():
        return backend.build(spec, precision, folder)


def _precisions(backend: Backend, spec: Spec) -> list[str]:
    """Those to be tried, in order."""
    able = backend.precisions()
    if spec.precision not in (None, *able, *backend.on_request):
        raise EngineError(f"precision {spec.precision!r} for {backend.title}",
                          f"one of {', '.join([*backend.on_request, *able])}", "leave it out to have it chosen")
    return [spec.precision] if spec.precision else list(able)


def _prove(backend: Backend, spec: Spec, precisions: Sequence[str], open_one: Callable[[str], Engine]
           ) -> tuple[Engine, dict[str, Parity]]:
    """Opens an engine in one precision after another until its results agree with eager's on the probe clip.

    Returns it, as fresh as new, with what was measured. Raises EngineError when none agrees.
    """
    from engines.runtime.eager import EagerEngine

    contract = spec.model.contract
    frames = probe_clip(contract)
    with one_torch_thread():
        wanted = run_clip(EagerEngine(spec.model.network, contract, 1), frames)
    found: dict[str, Parity] = {}
    for precision in precisions:
        engine = open_one(precision)
        found[precision] = compare(contract, wanted, run_clip(engine, frames))
        if found[precision].holds:
            engine.reset([0])
            return engine, found
        engine.close()
    measured = {precision: str(parity) for precision, parity in found.items()}
    raise EngineError(f"{backend.title} scores that are off by {measured} from eager",
                      f"{TOLERANCE} at most, and logits and features by {SPREAD_TOLERANCE} of their spread",
                      "use --engine eager, and report this with the output of `gatestream doctor`")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch on one thread: its threads wait for one another at every layer, for minutes where others keep the cores
    busy. One at a time, so that the number of threads from before is put back and not another builder's one."""
    import torch

    with _ONE_THREAD:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@functools.cache
def source_hash(engine_file: Path) -> str:
    """Of the source files that shape a built engine: the networks, their lowering, the proof, and the engine's own."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    networks = sorted((here.parent / "networks").glob("*.py"))
    for path in [*networks, here / "lowering.py", here / "parity.py", engine_file]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def missing(*packages: str) -> list[str]:
    """`no <package>` for each that is not installed. Nothing is imported."""
    return [f"no {package}" for package in packages if find_spec(package) is None]


def has_gpu() -> bool:
    """Whether torch can use a GPU. Asks torch only where the driver's own program is: importing torch takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()
