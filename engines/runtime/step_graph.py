"""Graphs in model files: making one, which needs torch, and reading one, which does not.

    gatestream export mine.safetensors --engine openvino --out mine.safetensors     # the same model, with its graph
"""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from engines.errors import EngineError
from engines.model.file import Model, load, save
from engines.model.graph import GraphRecord, StepGraph, pack, weights_digest
from engines.runtime.backend import Frames, one_torch_thread
from engines.runtime.engine import StepResult
from engines.runtime.parity import TOLERANCE, compare, probe_clip, run_clip
from engines.runtime.temporary import temporary_dir

if TYPE_CHECKING:
    import openvino as ov

CLIP_FRAMES = 24  # of the clip that goes with it


def recorded(model: Model) -> tuple[Frames, StepResult]:
    """The clip that goes with a model's graph, and what eager gave for it. Raises EngineError."""
    assert model.graph is not None
    try:
        frames = model.graph.frames(model.contract.input_size_hw)
        features = model.graph.features_TD
        return frames, StepResult(features, {
            head: features @ model.tensors[f"heads.{head}.weight"].T + model.tensors[f"heads.{head}.bias"]
            for head in model.contract.heads})
    except ValueError as error:
        raise damaged(model, str(error)) from error


def damaged(model: Model, why: str) -> EngineError:
    """The error of a graph that cannot be used."""
    return EngineError(f"{model.path or model.contract.name}, whose graph is damaged ({why})",
                       "a model file as it was written", "get it again, or make its graph again where torch is "
                       "installed: gatestream export FILE --engine openvino --out FILE.safetensors")


def make(model: Model) -> StepGraph:
    """The graph of a causal model, held to eager. Raises EngineError. The same model gives the same graph."""
    from engines.runtime import openvino
    from engines.runtime.eager import EagerEngine

    with one_torch_thread():
        graph = openvino.convert_step(model)
        long, short = probe_clip(model.contract), probe_clip(model.contract, CLIP_FRAMES)
        eager = EagerEngine(model.network, model.contract, 1)
        wanted, features_TD = run_clip(eager, long), run_clip(eager, short).features
    engine = openvino.engine_of(openvino.add_heads(graph, model.contract, model.tensors), model.contract, 1, "f32")
    parity = compare(model.contract, wanted, run_clip(engine, long))
    if not parity.holds:
        raise EngineError(f"a graph that is off by {parity} from eager", f"{TOLERANCE} at most",
                          "report this with the output of `gatestream doctor`")
    xml, constants, places = _serialised(graph)
    tensors = model.step_tensors
    names = {value.tobytes(): name for name, value in tensors.items()}
    held = [(offset, names[raw]) for offset, size in places if (raw := constants[offset:offset + size]) in names]
    record = GraphRecord(
        weights=weights_digest(tensors), constants_bytes=len(constants), tensors=tuple(held),
        made_with={library: version(library) for library in ("torch", "openvino")}, parity=asdict(parity))
    return pack(record, xml, constants, {name: value.nbytes for name, value in tensors.items()}, short, features_TD)


def write(model: Model, out: str | os.PathLike[str]) -> None:
    """Writes the model file with its graph made anew. Raises EngineError, SinkError."""
    save(out, model.contract, model.tensors, half=model.half, graph=make(model))


def carry(path: Path) -> None:
    """Puts its graph into a model file; that of a bidirectional model has none. Raises as `write`."""
    model = load(path)
    if model.contract.network.causal:
        write(model, path)


def _serialised(graph: ov.Model) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """The graph's two files, and where each constant lies in the second: offset and bytes.
    Names, which count on from graph to graph, are made anew, and what the converter was asked is left out."""
    import openvino as ov  # by way of our module, which was imported first: it reports to nobody

    for i, node in enumerate(graph.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{i}")
        for port in node.outputs():
            port.get_tensor().set_names(set())
    with temporary_dir() as folder:
        ov.save_model(graph, folder / "step.xml", compress_to_fp16=False)
        tree, constants = ElementTree.parse(folder / "step.xml"), (folder / "step.bin").read_bytes()
    root = tree.getroot()
    root.set("name", "step")
    for told in root.findall("rt_info"):
        root.remove(told)
    places = {(int(data.get("offset", 0)), int(data.get("size", 0))) for data in root.iterfind("layers/layer/data")
              if data.get("offset") is not None}
    return ElementTree.tostring(root), constants, _apart(sorted(places))


def _apart(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that begin behind the ones before."""
    found, end = [], 0
    for offset, size in places:
        if offset >= end:
            found.append((offset, size))
            end = offset + size
    return found


