"""What is installed and working here, and proof that stream = clip = every engine on this machine.

    for check in doctor("gesture"):
        print("ok  " if check.ok else "FAIL", check.name, check.detail)
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.bench.stages import machine
from engines.errors import raise_interrupt
from engines.model.file import load
from engines.runtime import cache
from engines.runtime.engine import Floats
from engines.runtime.parity import TOLERANCE, compare, probe_clip, run_clip
from engines.runtime.registry import ENGINES, bidirectional, unavailable_reason
from engines.runtime.registry import compile as compile_engine

if TYPE_CHECKING:
    from engines.model.file import Model

STREAM_TOLERANCE = 1e-3  # stream against clip in one engine: float32 in another order, nothing else
FRAMES = 48


class Check(NamedTuple):
    """One thing looked at. detail: what was found, or what went wrong."""

    name: str
    ok: bool
    detail: str


def doctor(model: str | os.PathLike[str] | Model = "gesture", hop: int | None = None) -> Iterator[Check]:
    """Looks at everything in turn; a check that breaks is a check that failed, never an exception.

    hop: of a bidirectional model, as `engines.compile` takes it.
    """
    for name, look in (("machine", _machine), ("video decoding", _video), ("torch", _torch),
                       ("OpenVINO", _openvino), ("engine cache", _cache)):
        yield _tried(name, look)
    opened: list[Model] = []

    def read() -> tuple[bool, str]:
        opened.append(load(model) if isinstance(model, (str, os.PathLike)) else model)
        contract = opened[0].contract
        return True, f"{contract.name}: {contract.architecture}, heads {', '.join(contract.heads)}"

    yield _tried("model", read)
    if opened:
        for name in ENGINES:
            yield _tried(f"engine {name}", lambda name=name: _engine(name, opened[0]))  # type: ignore[misc]
        yield from _laws(opened[0], hop)


def _laws(model: Model, hop: int | None) -> Iterator[Check]:
    if bidirectional(model) or hop is not None:
        yield _tried("window on eager = clip", lambda: _window(model, hop))
        return
    frames = probe_clip(model.contract, FRAMES)
    clip: dict[str, Floats] = {}

    def whole() -> tuple[bool, str]:
        clip.update(_clip_logits(model, frames, [FRAMES]))
        split = _clip_logits(model, frames, [1, 2, 7, FRAMES - 10])
        return _apart(compare(model.contract, clip, split), STREAM_TOLERANCE)

    yield _tried("any split of a clip = the clip", whole)
    for name in filter(_able, ENGINES):
        def stream(name: str = name) -> tuple[bool, str]:
            engine = compile_engine(model, name, slots=2)
            try:
                once = run_clip(engine, frames)
                again = run_clip(engine, frames)
            finally:
                engine.close()
            ok, detail = _apart(compare(model.contract, clip, once), TOLERANCE)
            same = all(np.array_equal(once[head], again[head]) for head in once)
            return ok and same, f"{engine.precision}, {detail}, after a reset {'the same' if same else 'NOT the same'}"

        yield _tried(f"stream on {name} = clip", stream)


def _able(name: str) -> bool:
    return unavailable_reason(name) is None


def _engine(name: str, model: Model) -> tuple[bool, str]:
    """Whether `auto` takes an engine for this model, and why; none of the answers is a fault."""
    if bidirectional(model):
        return True, "picked: only it scores whole clips" if name == "eager" else "not picked: the model needs clips"
    reason = unavailable_reason(name)
    if reason is not None:
        return True, f"not picked: {reason}"
    best = next(filter(_able, ENGINES))
    return True, "picked: the best that can run here" if name == best else f"can run here; {best} comes first"


def _window(model: Model, hop: int | None) -> tuple[bool, str]:
    """Compares the first whole clip of a stream, and the last that begins in it, with the network on those frames."""
    import torch

    from engines.model.preprocess import normalise
    from engines.networks.network import clip_scores
    from engines.runtime.windowed import WindowedEngine

    engine = WindowedEngine(model.network, model.contract, slots=1, hop=hop)
    T = engine.segments
    ends = [T, T + (T - 1) // engine.hop * engine.hop]
    frames = probe_clip(model.contract, ends[-1])
    streamed = run_clip(engine, frames)
    with torch.inference_mode():
        clips_BTCHW = torch.from_numpy(np.stack([normalise(frames[end - T:end], model.contract) for end in ends]))
        clips = {head: logits.numpy() for head, logits in clip_scores(model.network, clips_BTCHW).items()}
    last = {head: logits[[end - 1 for end in ends]] for head, logits in streamed.items()}
    ok, detail = _apart(compare(model.contract, clips, last), STREAM_TOLERANCE)
    return ok, f"{T} frames, scored every {engine.hop} at {engine.cost:.1f} times the arithmetic, {detail}"


def _clip_logits(model: Model, frames_u8: NDArray[np.uint8], pieces: list[int]) -> dict[str, Floats]:
    """Logits [T, K] of the torch network for a clip given in pieces, state carried between them."""
    import torch

    from engines.model.preprocess import normalise

    network, state = model.network, model.network.fresh_state(1)
    scores: dict[str, list[Floats]] = {head: [] for head in model.contract.heads}
    with torch.inference_mode():
        for piece in np.split(normalise(frames_u8, model.contract), np.cumsum(pieces)[:-1]):
            features, state = network(torch.from_numpy(piece)[None], state)
            for head, logits in network.scores(features).items():
                scores[head].append(logits[0].numpy())
    return {head: np.concatenate(parts) for head, parts in scores.items()}


def _apart(worst: float, most: float) -> tuple[bool, str]:
    return worst <= most, f"scores differ by {worst:.1e} at most (allowed {most:g})"


def _tried(name: str, look: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *look())
    except Exception as error:
        raise_interrupt(error)
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _machine() -> tuple[bool, str]:
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return True, f"{found['processor']}, {found['cores']} cores; {versions}"


def _video() -> tuple[bool, str]:
    import cv2

    found = re.search(r"FFMPEG:\s*(\S+)", cv2.getBuildInformation())
    ok = found is not None and found[1].upper() == "YES"
    return ok, f"OpenCV {cv2.__version__} with{'' if ok else 'out'} FFmpeg"


def _torch() -> tuple[bool, str]:
    import torch

    return True, f"{torch.__version__} (needed to build engines and to train, not to run)"


def _openvino() -> tuple[bool, str]:
    from openvino import __version__

    from engines.runtime.openvino import core

    able, devices = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), core().available_devices
    return "CPU" in devices, f"{__version__} on {', '.join(devices)}; CPU: " \
                              f"{', '.join(sorted(able))}"


def _cache() -> tuple[bool, str]:
    place = cache.cache_dir()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"1")
    return True, f"{place}, {len(cache.entries())} engines"
