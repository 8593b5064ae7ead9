"""What there is to know of an engine, and what all engines share: proof, choice of precision, and the cache.
An engine is a file of this folder with a `BACKEND`, and its name in `registry.ENGINES`: engines/README.md has an
example. It imports torch inside its functions only: `auto` reads the file to learn whether it can run here."""

import functools
import hashlib
import inspect
import logging
import operator
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, imports_of
from engines.model.file import Model
from engines.runtime import cache, nvidia
from engines.runtime.cache import Facts as Facts
from engines.runtime.engine import Engine, StepResult
from engines.runtime.own_process import call
from engines.runtime.parity import SPREAD_TOLERANCE, TOLERANCE, Parity, compare, probe_clip, run_clip

log = logging.getLogger("gatestream.engines")

NO_GPU = "no NVIDIA GPU that torch can use"
BY_PARITY = "by parity"
Frames = NDArray[np.uint8]
_ONE_THREAD = threading.Lock()


class Broken(str):
    """Why an engine is unavailable whose library somebody installed: `auto` says it, and goes on."""


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
    # In a precision, of the graph that a model carries, which `build` takes too: no torch is needed then.
    open_carried: Callable[[Spec, str], Engine] | None = None
    is_reference: bool = False  # eager: what others are compared with; the only one for bidirectional models

    def compile(self, spec: Spec) -> Engine:
        """An engine that agrees with eager: compiled, or from the cache, or built into it.
        For one camera nothing is kept of a graph that its model carries: there is nothing to build, nor to tune."""
        precisions = self._precisions(spec)
        if self.is_reference:
            return self.open(spec, precisions[0], Path(), {})
        if spec.slots == 1 and self.open_carried is not None and spec.model.graph is not None:
            return self._prove(spec, functools.partial(self.open_carried, spec))[0]
        if self.build is None:
            return self._prove(spec, lambda precision: self.open(spec, precision, Path(), {}))[0]
        return self.open_entry(spec, self.get_or_build(spec))

    def open_entry(self, spec: Spec, entry: cache.Entry) -> Engine:
        """The engine of a cache entry."""
        return self.open(spec, str(entry.facts["precision"]), entry.folder, entry.facts)

    def get_or_build(self, spec: Spec) -> cache.Entry:
        """The cache entry of an engine, built and proven if need be. One that is asked for by name may be there as the
        one that parity chose, and the other way about."""
        fastest = self._precisions(spec)[0]
        named = () if spec.precision in self.on_request else (None if spec.precision else fastest,)
        for precision in (spec.precision, *named):
            entry = cache.find(self.cache_key(replace(spec, precision=precision)))
            if entry is not None and (spec.precision is None or entry.facts["precision"] == spec.precision):
                return entry

        def build(folder: Path) -> Facts:
            if self._carried(spec):
                return self.build_proven(spec, folder)
            log.warning("building the %s engine of %s for this machine, once", self.title, spec.model.contract.name)
            began = time.perf_counter()
            facts = self.build_proven(spec, folder)
            log.warning("built in %.1f s: %s", time.perf_counter() - began, facts["precision"])
            return facts

        return cache.get_or_build(self.cache_key(spec), build)

    def cache_key(self, spec: Spec) -> dict[str, str]:
        """Everything that a built engine depends on."""
        return {"model": spec.model.digest, "engine": self.name, "precision": spec.precision or BY_PARITY,
                "code": source_hash(Path(inspect.getfile(self.open))), **self.key(spec)}

    def build_proven(self, spec: Spec, folder: Path) -> Facts:
        """Builds into a folder in the fastest precision that agrees with eager, measuring what was written: in a
        process of its own where this one has done without torch so far, and can go on so.
        Returns what `build` and `tune` return, with {"precision": ..., "parity": {precision: fields of Parity}}."""
        apart = "torch" not in sys.modules and sys.executable and not self._carried(spec)
        facts = call(_build_by_name, self.name, spec, folder) if apart else self.build_and_prove(spec, folder)
        return facts | (self.tune(spec, facts["precision"], folder) if self.tune is not None else {})

    def build_and_prove(self, spec: Spec, folder: Path) -> Facts:
        """`build_proven` without `tune`, here."""
        facts: Facts = {}

        def build_and_open(precision: str) -> Engine:
            facts.update(self._build(spec, precision, folder))
            return self.open(spec, precision, folder, facts)

        engine, parity = self._prove(spec, build_and_open)
        engine.close()
        proofs = {precision: asdict(found) for precision, found in parity.items()}
        return facts | {"precision": engine.precision, "parity": proofs}

    def open_unproven(self, spec: Spec) -> Engine:
        """An engine that is compared with nothing and kept nowhere, for timing. Needs a precision."""
        (precision,), folder = self._precisions(spec), cache.make_temporary_dir()
        return self.open(spec, precision, folder, self._build(spec, precision, folder))

    def _carried(self, spec: Spec) -> bool:
        """Whether this engine is made of a graph that the model carries, and held to the results that go with it."""
        return self.open_carried is not None and spec.model.graph is not None

    def _build(self, spec: Spec, precision: str, folder: Path) -> Facts:
        if self.build is None:
            return {}
        if self._carried(spec):
            return self.build(spec, precision, folder)
        with one_torch_thread():
            return self.build(spec, precision, folder)

    def _precisions(self, spec: Spec) -> list[str]:
        """Those to be tried, in order."""
        able = self.precisions()
        if spec.precision not in (None, *able, *self.on_request):
            raise EngineError(f"precision {spec.precision!r} for {self.title}",
                              f"one of {', '.join([*self.on_request, *able])}", "leave it out to have it chosen")
        if spec.precision:
            return [spec.precision]
        # A carried graph was held to eager over a long clip in f32, and a short one is too little to choose another by.
        return [able[-1]] if self._carried(spec) else list(able)

    def _prove(self, spec: Spec, open_one: Callable[[str], Engine]) -> tuple[Engine, dict[str, Parity]]:
        """Opens an engine in one precision after another until its results agree with eager's on the probe clip.
        Returns it, as fresh as new, with what was measured. Raises EngineError when none agrees."""
        contract = spec.model.contract
        frames, wanted = self._eager_results(spec.model)
        found: dict[str, Parity] = {}
        for precision in self._precisions(spec):
            engine = open_one(precision)
            found[precision] = functools.reduce(operator.or_, (  # each batch has kernels of its own
                compare(contract, wanted, run_clip(engine, frames, 0, range(1, size))) for size in engine.batch_sizes))
            if found[precision].holds:
                engine.reset(range(max(engine.batch_sizes)))
                return engine, found
            engine.close()
        raise refuse(self.title, found)

    def _eager_results(self, model: Model) -> tuple[Frames, StepResult]:
        """A clip, and what eager makes of it: here, or where the graph that the model carries was made."""
        if self._carried(Spec(model)):
            from engines.runtime.step_graph import recorded

            return recorded(model)
        with one_torch_thread():
            from engines.runtime.eager import EagerEngine

            frames = probe_clip(model.contract)
            return frames, run_clip(EagerEngine(model.network, model.contract, 1), frames)


def refuse(title: str, found: Mapping[str, Parity]) -> EngineError:
    """What to raise of an engine that agrees with eager in none of the precisions that were tried."""
    measured = {precision: str(parity) for precision, parity in found.items()}
    return EngineError(f"{title} scores that are off by {measured} from eager",
                       f"{TOLERANCE} at most, and logits and features by {SPREAD_TOLERANCE} of their spread",
                       "use --engine eager, and report this with the output of `gatestream doctor`")


def _build_by_name(name: str, spec: Spec, folder: Path) -> Facts:
    from engines.runtime.registry import find

    return find(name).build_and_prove(spec, folder)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch on one thread: its threads wait for one another at every layer, for minutes where others keep the cores
    busy. One at a time, so that the number of threads from before is put back and not another builder's one.
    Raises EngineError where torch is missing."""
    with imports_of("train", "torch", "building an engine of a model that carries none", error_type=EngineError):
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
    for path in [*sorted(here.parent.glob("networks/*.py")), here / "lowering.py", here / "parity.py", engine_file]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def has_gpu() -> bool:
    """Whether torch can use a GPU. Asks torch only where there is a driver: importing torch takes seconds."""
    if not nvidia.has_driver():
        return False
    import torch

    return torch.cuda.is_available()
