"""The step that a model file carries, ready for OpenVINO: with it a model runs where torch is not installed.

    graph.xml        the step's operators, without heads, deflated
    graph.constants  what of their constants is no tensor of the model, deflated; the others are named, not repeated
    graph.frames     a short clip as a PNG image, one frame below the other
    graph.features   what eager gave for it: where the clip is played again, an engine must give that

Made where torch is (engines/runtime/step_graph.py), of the weights whose digest it names. Heads are added when it is
opened, so a model that was taught other labels keeps it. Legend: T frames, H W the input size, D features."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

PREFIX = "graph."
PARTS = ("xml", "constants", "frames", "features")
LARGEST_BYTES = 4 * 10**9  # a damaged file may claim any size
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Count = Annotated[int, Field(ge=0, le=LARGEST_BYTES)]


class GraphRecord(BaseModel):
    """What is said of a graph in its file's metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str  # digest of the tensors that it was made of, see `weights_digest`
    constants_bytes: Count  # of all constants, one behind the other
    tensors: tuple[tuple[Count, str], ...]  # where among them a tensor of the model stands, as float32, and its name
    made_with: dict[str, str]  # versions by library
    parity: dict[str, float]  # how far it was from eager in f32, over a longer clip: fields of `Parity`


@dataclass(frozen=True)
class StepGraph:
    """The graph of one model file."""

    record: GraphRecord
    parts: Mapping[str, Bytes | Floats]  # by name, of PARTS

    @classmethod
    def read(cls, record: str, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """From what a model file holds. Raises ValueError for what is none, or not whole."""
        parts = {part: tensors[PREFIX + part] for part in PARTS if PREFIX + part in tensors}
        wanted = dict.fromkeys(PARTS, np.uint8) | {"features": np.float32}
        if {part: value.dtype for part, value in parts.items()} != wanted or parts["features"].ndim != 2:
            raise ValueError(f"parts {sorted(parts)} of other types than they should have")
        return cls(GraphRecord.model_validate_json(record), parts)

    def tensors(self) -> dict[str, Bytes | Floats]:
        """What a model file holds of it, beside the record."""
        return {PREFIX + part: value for part, value in self.parts.items()}

    @property
    def xml(self) -> bytes:
        return inflate(self.parts["xml"])

    @property
    def features_TD(self) -> Floats:
        return np.asarray(self.parts["features"], np.float32)

    def frames(self, size_hw: tuple[int, int]) -> Bytes:
        """The clip, BGR [T, H, W, 3]. Raises ValueError where it is none of this size."""
        import cv2

        found = cv2.imdecode(np.asarray(self.parts["frames"], np.uint8), cv2.IMREAD_COLOR)
        wanted = (len(self.features_TD), *size_hw, 3)
        if found is None or found.size != np.prod(wanted):
            raise ValueError(f"a clip that is not of {wanted}")
        return np.asarray(found, np.uint8).reshape(wanted)

    def constants(self, tensors: Mapping[str, Floats]) -> bytes:
        """All constants, of which the model's tensors are some. Raises ValueError where they do not fit together."""
        own, found, at = inflate(self.parts["constants"]), bytearray(), 0
        for offset, name in self.record.tensors:
            if name not in tensors or offset < len(found):
                raise ValueError(f"constants of tensor {name} that cannot be")
            between = offset - len(found)
            found += own[at:at + between]
            found += tensors[name].tobytes()
            at += between
        found += own[at:]
        if len(found) != self.record.constants_bytes:
            raise ValueError(f"{len(found)} bytes of constants instead of {self.record.constants_bytes}")
        return bytes(found)


def pack(record: GraphRecord, xml: bytes, constants: bytes, sizes: Mapping[str, int], frames_u8_THWC: Bytes,
         features_TD: Floats) -> StepGraph:
    """sizes: in bytes, of the tensors of the record, which are left out of the constants."""
    import cv2

    own, at = bytearray(), 0
    for offset, name in record.tensors:
        own += constants[at:offset]
        at = offset + sizes[name]
    own += constants[at:]
    picture = cv2.imencode(".png", frames_u8_THWC.reshape(-1, *frames_u8_THWC.shape[2:]),
                           [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return StepGraph(record, {"xml": deflate(xml), "constants": deflate(bytes(own)),
                              "frames": np.asarray(picture, np.uint8).ravel(), "features": features_TD})


def weights_digest(tensors: Mapping[str, Floats]) -> str:
    """Of the tensors that a step is made of: sha256 in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, np.float32).data)
    return digest.hexdigest()


def deflate(raw: bytes) -> Bytes:
    return np.frombuffer(zlib.compress(raw, 9), np.uint8)


def inflate(part: NDArray[Any]) -> bytes:
    """Raises ValueError for what is damaged, or too large to be meant."""
    try:
        stream = zlib.decompressobj()
        found = stream.decompress(part.tobytes(), LARGEST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof:
        raise ValueError("it is cut short")
    return found
