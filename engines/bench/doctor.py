"""What is installed and working here, and proof that stream = clip = every engine on this machine."""

import functools
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.bench.stages import machine
from engines.errors import raise_interrupt
from engines.model.file import Model, load
from engines.model.preprocess import normalise
from engines.runtime import cache
from engines.runtime.engine import Engine, Floats, StepResult
from engines.runtime.parity import SPREAD_TOLERANCE, TOLERANCE, compare, probability_difference, probe_clip, run_clip
from engines.runtime.registry import ENGINES, unavailable_reason
from engines.runtime.registry import compile as compile_engine

STREAM_TOLERANCE = 1e-3  # stream against clip in one engine: float32 in another order, nothing else
FRAMES = 48
Outcome = tuple[bool, str]
Events = list[tuple[str, str, float, float]]  # head, label, start and end in seconds


class Check(NamedTuple):
    name: str
    ok: bool
    detail: str  # what was found, or what went wrong


def doctor(model: str | os.PathLike[str] | Model = "gesture", hop: int | None = None,
           find_events: Callable[[Model, Engine], Events] | None = None) -> Iterator[Check]:
    """Checks everything in turn; a check that breaks is a check that failed, never an exception.
    hop: of a bidirectional model, as `engines.compile` takes it; find_events: runs a stream through an engine; its
    events are to be eager's, their times to within a frame."""
    for name, check in (("machine", _machine), ("video decoding", _video), ("torch", _torch),
                        ("OpenVINO", _openvino), ("engine cache", _cache)):
        yield _checked(name, check)
    opened: list[Model] = []

    def read() -> Outcome:
        opened.append(load(model) if isinstance(model, (str, os.PathLike)) else model)
        contract = opened[0].contract
        return True, f"{contract.name}: {contract.architecture}, heads {', '.join(contract.heads)}"

    yield _checked("model", read)
    if opened:
        for name in ENGINES:
            yield _checked(f"engine {name}", partial(_engine, name, opened[0]))
        yield from _laws(opened[0], hop, find_events)


def _laws(model: Model, hop: int | None, find_events: Callable[[Model, Engine], Events] | None) -> Iterator[Check]:
    if find_spec("torch") is None:
        yield _checked("stream on openvino = what goes with the model's graph", partial(_recorded, model))
        return
    if not model.contract.network.causal or hop is not None:
        yield _checked("window on eager = clip", partial(_window, model, hop))
        return
    frames = probe_clip(model.contract, FRAMES)
    clip = functools.cache(partial(_run_network, model, frames, [FRAMES]))
    events = functools.cache(lambda: find_events(model, compile_engine(model, "eager")) if find_events else [])

    def split() -> Outcome:
        pieces = _run_network(model, frames, [1, 2, 7, FRAMES - 10])
        return _near(probability_difference(model.contract, clip().scores, pieces.scores), STREAM_TOLERANCE)

    def stream(name: str) -> Outcome:
        with closing(compile_engine(model, name, slots=2)) as engine:
            once, again = run_clip(engine, frames), run_clip(engine, frames)
            found = find_events(model, engine) if find_events else []
        parity = compare(model.contract, clip(), once)
        repeats = all(np.array_equal(once.scores[head], again.scores[head]) for head in once.scores)
        same = _same_events(events(), found, 1 / model.contract.frame_rate)
        return parity.holds and repeats and same, (
            f"{engine.precision}, {_near(parity.probabilities, TOLERANCE)[1]}, logits by {parity.logits:.1e} and "
            f"features by {parity.features:.1e} of their spread (allowed {SPREAD_TOLERANCE:g}), after a reset "
            f"{'the same' if repeats else 'NOT the same'}"
            + (f", {len(found)} events, {'as' if same else 'NOT as'} eagerly" if find_events else ""))

    yield _checked("any split of a clip = the clip", split)
    for name in ENGINES:
        if unavailable_reason(name) is None:
            yield _checked(f"stream on {name} = clip", partial(stream, name))


def _same_events(wanted: Events, found: Events, frame_s: float) -> bool:
    return len(wanted) == len(found) and all(
        one[:2] == other[:2] and np.allclose(one[2:], other[2:], rtol=0, atol=1.01 * frame_s)
        for one, other in zip(wanted, found, strict=True))


def _engine(name: str, model: Model) -> Outcome:
    """Whether `auto` takes an engine for this model, and why; none of the answers is a fault."""
    if not model.contract.network.causal:
        return True, "picked: only it scores whole clips" if name == "eager" else "not picked: the model needs clips"
    if reason := unavailable_reason(name):
        return True, f"not picked: {reason}"
    best = next(name for name in ENGINES if unavailable_reason(name) is None)
    return True, "picked: the best that can run here" if name == best else f"can run here; {best} comes first"


def _recorded(model: Model) -> Outcome:
    """Where torch is missing: against what eager gave where the model's graph was made."""
    from engines.runtime.step_graph import recorded

    with closing(compile_engine(model, "openvino")) as engine:
        frames, wanted = recorded(model)
        once, again = run_clip(engine, frames), run_clip(engine, frames)
    parity = compare(model.contract, wanted, once)
    repeats = np.array_equal(once.features, again.features)
    return parity.holds and repeats, f"{engine.precision}, {parity}, after a reset {'' if repeats else 'NOT '}the same"


def _window(model: Model, hop: int | None) -> Outcome:
    """Compares the first whole clip of a stream, and the last that begins in it, with the network on those frames."""
    import torch

    from engines.networks.network import clip_scores
    from engines.runtime.windowed import WindowedEngine

    model = model.with_hop(hop)
    engine = WindowedEngine(model.network, model.contract, slots=1)
    T = engine.segments
    ends = [T, T + (T - 1) // engine.hop * engine.hop]
    frames = probe_clip(model.contract, ends[-1])
    streamed = run_clip(engine, frames)
    with torch.inference_mode():
        clips_BTCHW = torch.from_numpy(np.stack([normalise(frames[end - T:end], model.contract) for end in ends]))
        clips = {head: logits.numpy() for head, logits in clip_scores(model.network, clips_BTCHW).items()}
    last = {head: logits[[end - 1 for end in ends]] for head, logits in streamed.scores.items()}
    ok, detail = _near(probability_difference(model.contract, clips, last), STREAM_TOLERANCE)
    return ok, f"{T} frames, scored every {engine.hop} at {engine.cost:.1f} times the arithmetic, {detail}"


def _run_network(model: Model, frames_u8: NDArray[np.uint8], pieces: list[int]) -> StepResult:
    """Features and logits of the torch network for a clip given in pieces, state carried between them."""
    import torch

    network, state = model.network, model.network.fresh_state(1)
    found: list[Floats] = []
    with torch.inference_mode():
        for piece in np.split(normalise(frames_u8, model.contract), np.cumsum(pieces)[:-1]):
            features, state = network(torch.from_numpy(piece)[None], state)
            found.append(features[0].numpy())
        features_TD = np.concatenate(found)
        scores = network.scores(torch.from_numpy(features_TD))
    return StepResult(features_TD, {head: logits.numpy() for head, logits in scores.items()})


def _near(worst: float, most: float) -> Outcome:
    return worst <= most, f"scores differ by {worst:.1e} at most (allowed {most:g})"


def _checked(name: str, check: Callable[[], Outcome]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:
        raise_interrupt(error)
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _machine() -> Outcome:
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return True, f"{found['processor']}, {found['cores']} cores; {versions}"


def _video() -> Outcome:
    import cv2

    found = re.search(r"FFMPEG:\s*(\S+)", cv2.getBuildInformation())
    ok = found is not None and found[1].upper() == "YES"
    return ok, f"OpenCV {cv2.__version__} with{'' if ok else 'out'} FFmpeg"


def _torch() -> Outcome:
    if find_spec("torch") is None:
        return True, "not installed: needed to train, and to run models without a graph: 'gatestream[train]' has it"
    import torch

    return True, f"{torch.__version__} (needed to train, and to run models that carry no graph)"


def _openvino() -> Outcome:
    from engines.runtime.openvino import core

    able, devices = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), ", ".join(core().available_devices)
    return "CPU" in devices, f"{importlib.metadata.version('openvino')} on {devices}; CPU: {', '.join(sorted(able))}"


def _cache() -> Outcome:
    place = cache.make_private_dir(cache.cache_dir())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"1")
    return True, f"{place}, {len(cache.entries())} engines"
