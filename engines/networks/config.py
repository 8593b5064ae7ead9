"""Which network, and how the clips of a window are fused: what a model file stores of both. No torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import UsageError, first_problem

PREFIX = "fusion."  # begins the names of clip fusion's tensors in a model file
EPSILON = 1e-6  # the least sum of weights, in frames, that a window descriptor is divided by
INNER_MOST = 64  # wider would cost more than 3 % of a small network's step
MIDDLE_CHANNELS = {"mobilenetv2": 96}  # of the backbones whose middle layer can be pooled
MOTION_WIDTH = 128  # features of a motion branch
Group = tuple[float, tuple[int, int, int]]  # share of the channels, (dt, dh, dw) with each of -1, 0, 1


class NetworkConfig(BaseModel):
    """A backbone, the temporal modules at its sites, and a recurrent read-out.

        config = NetworkConfig.of("gsf-mobilenetv2", causal=True, readout_width=128)
        network = engines.build(config, heads={"gesture": 11})

    A field of None is as usual for the backbone or module; `network.config` has what that is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str  # tsn (none), tsm, gsm, gsf or stsm
    backbone: str  # bninception, inceptionv3, resnet18, resnet50 or mobilenetv2
    causal: bool = False  # for live streams; else bidirectional, as published, for clips
    input_size_hw: tuple[int, int] | None = None  # pixels
    sites: tuple[str, ...] | None = None  # where modules sit
    gate_ratio: Annotated[int, Field(ge=1, le=100)] | None = None  # percentage of a map's channels that GSF gates
    shift: str | tuple[Group, ...] = "THW"  # STSM's groups of channels: a preset's name, or the groups (see stsm.py)
    # Causal: frames back to the channels that look ahead in the published form; 0: they stay in their own.
    past_shift: Annotated[int, Field(ge=0, le=2)] | None = None
    readout_width: Annotated[int, Field(ge=0, le=65536)] = 0  # of the recurrent read-out, causal only; 0: none
    # Cells along each side of a grid on the middle layer's map, whose means are features, too; causal only; 0: none.
    middle_grid: Annotated[int, Field(ge=0, le=16)] = 0
    motion: bool = False  # whether a motion branch on the middle layer's map gives features, too; causal only
    segments: Annotated[int, Field(ge=1, le=65536)] = 8  # frames of a bidirectional clip
    hop: int | None = None  # on a stream, frames from one clip's scores to the next; None: a quarter of `segments`

    @classmethod
    def of(cls, architecture: str, **options: Any) -> Self:
        """The config of "MODULE-BACKBONE" with these fields. Raises UsageError for fields that cannot be."""
        module, _, backbone = architecture.partition("-")
        return cls._checked({"module": module, "backbone": backbone, **options})

    def replace(self, **changes: Any) -> Self:
        """The same with other fields. Raises UsageError for fields that cannot be."""
        return self._checked({**self.model_dump(), **changes})

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            got, wanted = first_problem(error)
            raise UsageError(f"{fields['module']}-{fields['backbone']} with {got}", wanted,
                             "correct it, or leave it out") from None

    @property
    def middle_features(self) -> int:
        """How many features, the last ones, are means over cells of the middle layer's grid."""
        return 0 if self.readout_width else self.middle_grid ** 2 * MIDDLE_CHANNELS.get(self.backbone, 0)

    @property
    def motion_features(self) -> int:
        """How many features, before those of the middle layer, are a motion branch's."""
        return MOTION_WIDTH if self.motion and not self.readout_width else 0

    @property
    def architecture(self) -> str:
        return f"{self.module}-{self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.readout_width and not self.causal:
            raise ValueError(f"readout_width={self.readout_width} on a bidirectional network: causal=True with it")
        if (self.middle_grid or self.motion) and not self.causal:
            raise ValueError(f"middle_grid={self.middle_grid}, motion={self.motion} on a bidirectional network: "
                             "causal=True with them")
        if self.past_shift is not None and not self.causal:
            raise ValueError(f"past_shift={self.past_shift} on a bidirectional network: causal=True with it")
        if self.hop is not None and (self.causal or not 1 <= self.hop <= self.segments):
            on = "a causal network" if self.causal else f"a clip of {self.segments} frames"
            raise ValueError(f"hop={self.hop} on {on}: 1 to {self.segments} on a bidirectional network")
        return self


class FusionRule(BaseModel):
    """How the clips of a window become one descriptor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relate: Literal["attention", "bigru", "none"] = "attention"  # what relates each clip to the others
    gate: bool = True  # each clip has a gate, else all are open
    tied: bool = False  # both directions along the window share their weights
    inner: Annotated[int, Field(ge=1, le=4096)] | None = None  # width inside; None: D / 4, up to INNER_MOST
    keep: Annotated[int, Field(ge=1, le=4096)] | None = None  # only so many clips, those with the largest gates, decide
    keep_above: Annotated[float, Field(ge=0, le=1)] | None = None  # only clips with such a gate decide

    def inner_width(self, width: int) -> int:
        """The inner width for descriptors of `width` features."""
        return self.inner or max(1, min(width // 4, INNER_MOST))


def directions(rule: FusionRule) -> tuple[str, ...]:
    """The names of the parts that look along the window: at earlier clips, later clips, or both with one weight."""
    if rule.relate == "none":
        return ()
    return ("both",) if rule.tied else ("past", "future")


def tensor_shapes(rule: FusionRule, width: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model file with this fusion holds, for descriptors of `width`."""
    inner = rule.inner_width(width)
    shapes: dict[str, tuple[int, ...]] = {}
    for direction in directions(rule):
        at = f"{PREFIX}relate.{direction}"
        if rule.relate == "attention":
            shapes |= {f"{at}.{part}.weight": (inner, width) for part in ("query", "key", "value")}
        else:
            shapes |= {f"{at}.cell.weight_ih": (3 * inner, width), f"{at}.cell.weight_hh": (3 * inner, inner),
                       f"{at}.cell.bias_ih": (3 * inner,), f"{at}.cell.bias_hh": (3 * inner,)}
        shapes[f"{at}.out.weight"] = (width, inner)
    if rule.gate:
        at = f"{PREFIX}gate"
        shapes |= {f"{at}.squeeze.weight": (inner, 2 * width), f"{at}.squeeze.bias": (inner,),
                   f"{at}.score.weight": (1, inner), f"{at}.score.bias": (1,)}
    return shapes
