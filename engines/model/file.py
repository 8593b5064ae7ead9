"""The model file: one `.safetensors` holding weights, the contract as metadata, and mostly its graph for OpenVINO.
Reading needs numpy only: torch is imported when `Model.network` is first used. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from engines.errors import EngineError, ModelError, SinkError, UsageError, first_problem, imports_of
from engines.model import graph as graphs
from engines.model import pooling
from engines.model.clip_fusion import GatedFusion
from engines.model.contract import FORMAT, Contract
from engines.networks.config import PREFIX, tensor_shapes

if TYPE_CHECKING:
    from engines.networks.network import Network

log = logging.getLogger("gatestream.engines")

ZOO = Path(__file__).parents[1] / "zoo"
EXAMPLES = "examples."  # begins the names of what a taught model remembers, see engines/training/exemplars.py
CHECKPOINT_SUFFIXES = {".tar", ".pth", ".pt"}  # PyTorch's
NOT_OF_THE_NETWORK = (PREFIX, EXAMPLES, pooling.PREFIX)  # begin the names of tensors that it does without
STATISTICS = ("running_mean", "running_var")  # of batch norms, whose range no training bounds
Array = NDArray[np.float32]


@dataclass(eq=False)
class Model:
    """A model file in memory."""

    contract: Contract
    tensors: dict[str, Array]  # float32 weights by name
    digest: str  # sha256 of the file's bytes
    path: Path | None = None
    half: bool = True  # whether the file stores float16
    graph: graphs.StepGraph | None = None  # of these weights

    def with_hop(self, hop: int | None) -> Model:
        """The same bidirectional model, on a stream scoring its clips again after every `hop` frames (None: as it is).
        Raises UsageError."""
        if hop is None:
            return self
        network = self.contract.network.replace(hop=hop)
        return replace(self, contract=self.contract.model_copy(update={"network": network}))

    @cached_property
    def network(self) -> Network:
        """The torch network in evaluation mode. Raises ModelError where weights and contract disagree."""
        return build_network(self)

    @cached_property
    def clip_fusion(self) -> GatedFusion | None:
        """What fuses the clips of a live window, without torch; None where their mean is all there is."""
        return None if self.contract.fusion is None else GatedFusion(self.contract.fusion, self.tensors)

    @cached_property
    def pooled_heads(self) -> dict[tuple[str, str], pooling.PooledHead]:
        """By head and span, of a contract with pooling; without torch."""
        return {(head, span): pooling.PooledHead(self.contract, self.tensors, head, span)
                for head in self.contract.heads for span in pooling.SPANS}

    @property
    def step_tensors(self) -> dict[str, Array]:
        """What one frame's features are computed with: the network's tensors without its heads."""
        return {name: value for name, value in self.tensors.items()
                if not name.startswith(("heads.", *NOT_OF_THE_NETWORK))}

    @property
    def taught(self) -> bool:
        """Whether its heads have learnt anything: pooled heads of a base have not."""
        return self.contract.pooling is None or any(
            value.any() for name, value in self.tensors.items() if name.startswith(pooling.PREFIX))

    def require_taught(self) -> Self:
        """The model itself. Raises UsageError for a base that knows no label yet."""
        if not self.taught:
            name = self.contract.name
            raise UsageError(f"{name}, which knows no action yet", "a model that has been taught",
                             f"gatestream teach {name} FOLDER --out mine.safetensors, and use that")
        return self

    def head_logits(self, features_D: Array) -> dict[str, Array]:
        """Logits of every head for one descriptor [D], without torch."""
        return {head: self.tensors[f"heads.{head}.weight"] @ features_D + self.tensors[f"heads.{head}.bias"]
                for head in self.contract.heads}


def build_network(model: Model) -> Network:
    """Builds the network of a model's contract and fills in its weights. Raises EngineError where torch is missing."""
    with imports_of("train", "torch", f"the network of {model.contract.name}", error_type=EngineError):
        import torch

        from engines.networks.network import build

    contract = model.contract
    try:
        network = build(contract.network, heads={name: len(labels) for name, labels in contract.heads.items()})
    except (ValueError, UsageError) as error:
        raise ModelError(f"a network that cannot be built: {error}", "one that engines.build accepts",
                         "get the model file again") from error
    state = {name: torch.from_numpy(np.array(value)) for name, value in model.tensors.items()
             if not name.startswith(NOT_OF_THE_NETWORK)}
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()
              if not name.endswith("num_batches_tracked")}
    if problems := mismatches(wanted, {name: tensor.shape for name, tensor in state.items()}):
        raise ModelError(f"weights that disagree with the contract ({'; '.join(problems[:3])})",
                         f"the tensors of {contract.architecture}", "get the model file again, or train it again")
    network.load_state_dict(state, strict=False)
    return network.eval()


def mismatches(wanted: Mapping[str, Sequence[int]], held: Mapping[str, Sequence[int]]) -> list[str]:
    """How tensors differ from those that are wanted, by name and shape: a phrase for each."""
    return [*(f"no {name}" for name in wanted if name not in held),
            *(f"unknown {name}" for name in sorted(held) if name not in wanted),
            *(f"{name} of shape {tuple(held[name])} instead of {tuple(shape)}" for name, shape in wanted.items()
              if name in held and tuple(held[name]) != tuple(shape))]


def bundled() -> dict[str, Path]:
    """Name -> file of the models that come with gatestream."""
    return {path.stem: path for path in sorted(ZOO.glob("*.safetensors"))}


def load(name_or_path: str | os.PathLike[str]) -> Model:
    """Reads a bundled model by name, or a model file by path.
    Raises UsageError for a name or file that does not exist, ModelError for a file that is damaged, of another
    format, with weights that disagree with the contract, or holding values that are not finite."""
    path = bundled().get(os.fspath(name_or_path), Path(name_or_path))
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"model {os.fspath(name_or_path)!r}, which is no bundled model and no file",
                         f"a model file, or one of: {', '.join(bundled()) or 'no model is bundled'}",
                         "check the path, or see `gatestream models`") from None
    except OSError as error:
        raise ModelError(f"model file {path} ({error.strerror})", "a readable file", "check its permissions") from error
    try:
        tensors = parse(raw)
        # A length in 8 bytes, then a header of JSON whose metadata, if any, are texts: else it was not parsed.
        metadata = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError) as error:
        if path.suffix in CHECKPOINT_SUFFIXES or raw.startswith(b"PK\x03\x04"):
            raise ModelError(f"{path}, which looks like a PyTorch checkpoint", f"a model file of format {FORMAT}",
                             f"make one: gatestream import-official {path} --out FILE.safetensors") from error
        raise ModelError(f"{path} ({error})", "a complete safetensors file",
                         "get the file again: it is truncated or of another format") from error
    if "contract" not in metadata:
        raise ModelError(f"{path}, safetensors without a gatestream contract", f"a model file of format {FORMAT}",
                         "make one with `gatestream train`")
    try:
        contract = Contract.model_validate_json(metadata["contract"])
    except ValidationError as error:
        got, wanted = first_problem(error)
        raise ModelError(f"{path}, whose contract has {got}: {wanted}", f"a contract of format {FORMAT}",
                         "get the model file again") from error
    held = {name: tensors.pop(name) for name in list(tensors) if name.startswith(graphs.PREFIX)}
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating) or not np.isfinite(tensor).all():
            raise ModelError(f"{path}, whose tensor {name} has type {tensor.dtype} or values that are not finite",
                             "finite floating-point weights", "get the model file again, or train it again")
    weights = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    _check(path, contract, weights)
    half = any(tensor.dtype == np.float16 for tensor in tensors.values())
    model = Model(contract, weights, hashlib.sha256(raw).hexdigest(), path, half)
    return replace(model, graph=_graph(model, metadata.get("graph"), held)) if held else model


def _graph(model: Model, record: str | None, held: Mapping[str, NDArray[np.generic]]) -> graphs.StepGraph | None:
    """The graph that a model's file holds; None, and a word of it, where it is not of these weights."""
    try:
        graph = graphs.StepGraph.read(record or "", held)
    except ValueError as error:
        problem = first_problem(error)[0] if isinstance(error, ValidationError) else error
        raise ModelError(f"{model.path}, whose graph cannot be read ({problem})", "a model file as it was written",
                         "get the model file again") from error
    if graph.record.weights == graphs.weights_digest(model.step_tensors):
        return graph
    log.warning("the graph in %s is of other weights than these: it is left alone", model.path)
    return None


def save(path: str | os.PathLike[str], contract: Contract, tensors: dict[str, Array], *, half: bool = True,
         graph: graphs.StepGraph | None = None) -> None:
    """Writes a model file atomically.
    graph: of these weights, as it was read with them.
    half: store float16, but for batch norms' statistics and tensors with values beyond its range (they are used as
    float32). Raises ModelError, and leaves what there is, for values that are not finite; SinkError."""
    stored: dict[str, NDArray[Any]] = {}
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        stored[name] = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(value).all():
            raise ModelError(f"{path} with values in {name} that are not finite", "finite weights",
                             "train it again at a lower learning rate")
        if half and not name.endswith(STATISTICS) and np.abs(value).max(initial=0) <= np.finfo(np.float16).max:
            stored[name] = stored[name].astype(np.float16)
    metadata = {"contract": contract.model_dump_json()}
    if graph is not None:
        metadata["graph"] = graph.record.model_dump_json()
    write_atomically(Path(path), serialise(stored | (graph.tensors() if graph else {}), metadata=metadata))


def write_atomically(path: Path, raw: bytes) -> None:
    """Writes a file that is always whole. Raises SinkError."""
    with whole_file(path) as aside:
        aside.write_bytes(raw)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a file to be written, which then takes the place of `path` at once. Raises SinkError."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            aside = Path(folder) / path.name
            yield aside
            with aside.open("r+b") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    except OSError as error:
        raise SinkError(f"{path} ({error.strerror})", "a place that can be written",
                        "choose another folder or free some space") from error


def _check(path: Path, contract: Contract, weights: dict[str, Array]) -> None:
    """Heads fit their labels, and there are just the `fusion.*` and `pooled.*` tensors that the contract asks for."""
    for head, labels in contract.heads.items():
        weight, bias = (weights.get(f"heads.{head}.{part}", np.zeros(())) for part in ("weight", "bias"))
        if weight.ndim != 2 or (len(weight), bias.shape) != (len(labels), (len(labels),)):
            raise ModelError(f"{path}, whose head {head!r} has weights of shape {weight.shape} for {len(labels)} "
                             "labels", "weights and contract that agree", "get the model file again, or train it again")
    width = weights[f"heads.{next(iter(contract.heads))}.weight"].shape[1]
    wanted = {} if contract.fusion is None else tensor_shapes(contract.fusion, width)
    held = {name: value.shape for name, value in weights.items() if name.startswith(PREFIX)}
    if problems := mismatches(wanted, held):
        raise ModelError(f"{path}, whose clip fusion disagrees with its contract ({'; '.join(problems[:3])})",
                         f"the tensors of fusion {contract.fusion.model_dump() if contract.fusion else None}",
                         "get the model file again, or train its fusion again")
    wanted = {} if contract.pooling is None else {
        name: shape for head, labels in contract.heads.items()
        for name, shape in pooling.tensor_shapes(
            contract, head, len(labels), width + contract.foreground_cells + contract.pooling.hands).items()}
    held = {name: value.shape for name, value in weights.items() if name.startswith(pooling.PREFIX)}
    if problems := mismatches(wanted, held):
        raise ModelError(f"{path}, whose pooled heads disagree with its contract ({'; '.join(problems[:3])})",
                         "the tensors that its pooling asks for", "get the model file again, or teach it again")
