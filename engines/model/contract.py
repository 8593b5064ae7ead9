"""The contract: everything about a model that is not a weight. It travels inside the model file."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.errors import UsageError
from engines.networks.config import FusionRule, NetworkConfig

FORMAT = "gatestream/1"
OLD_OPTIONS = {"memory": "readout_width", "places": "sites", "percent": "gate_ratio", "ahead": "past_shift"}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class EventRule(BaseModel):
    """How scores become events (see `stream/events.py`). Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    open_above: Probability = 0.6
    close_below: Probability = 0.4
    close_after_s: Annotated[float, Field(ge=0, le=60)] = 0.25
    min_duration_s: Annotated[float, Field(ge=0, le=600)] = 0.3
    min_score: Probability = 0.5
    split_after_s: Annotated[float, Field(ge=0, le=600)] = 1.0
    report_unknown: bool = False

    def opening_above(self, probability: float) -> Self:
        """The same rule with another threshold; events never close above the one that they open at."""
        return self.model_copy(update={"open_above": probability, "close_below": min(self.close_below, probability)})


# For a model with no label for "nothing": a window is of one action's label only where that fills most of it.
NO_BACKGROUND_EVENTS = EventRule(open_above=0.5, close_below=0.3, min_duration_s=0.5, min_score=0.4)


class PoolingRule(BaseModel):
    """Heads read statistics of frame features over the newest clips (see `engines/model/pooling.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    now_clips: Annotated[int, Field(ge=1, le=4096)] = 4  # for scores of the moment; those of the window read them all
    foreground_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # features of `Foreground` after the network's, with a
    # running mean over so many seconds; 0: none
    hands: Annotated[int, Field(ge=0, le=4096)] = 0  # features of two hands after those (`engines/hands`)
    hidden: Annotated[int, Field(ge=0, le=4096)] = 0  # units of a hidden layer on statistics of the motion branch


class Contract(BaseModel):
    """What a caller must know to use a model, validated on load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["gatestream/1"] = "gatestream/1"
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    network: NetworkConfig
    heads: dict[str, tuple[str, ...]]  # labels of each head, in output order
    multi_label: tuple[str, ...] = ()  # heads whose labels are true each for itself, of which none need be
    frame_rate: Positive  # frames a second, as in training
    cover_hw: tuple[int, int]  # the camera image is scaled to just cover this, then centre-cropped to the input size
    resize_filter: Literal["area", "bilinear", "pillow-bilinear"] = "area"  # see `engines/model/preprocess.py`
    colour: Literal["RGB", "BGR"] = "RGB"
    value_scale: Positive = 1 / 255  # pixels are multiplied by this, then (x - mean) / std in `colour` order
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    receptive_frames: Annotated[int, Field(ge=1)]  # that an output depends on through the temporal modules
    warmup_frames: Annotated[int, Field(ge=0)]  # after a reset, before scores count
    clip_frames: Annotated[int, Field(ge=1, le=4096)]  # in a clip descriptor
    window_clips: Annotated[int, Field(ge=1, le=4096)]
    max_gap_s: Positive = 1.0  # a longer hole resets the stream
    fusion: FusionRule | None = None  # of a window's clips, by the `fusion.*` tensors; None: the mean of all frames
    pooling: PoolingRule | None = None  # of heads that read statistics over clips, by the `pooled.*` tensors
    temperature: dict[str, Positive] = {}  # by which a head's logits at one frame are divided
    window_temperature: dict[str, Positive] = {}  # and those of a window
    background: str | None = None  # the label that means "nothing", in every head that has it
    events: EventRule = EventRule()
    provenance: dict[str, Any] = {}

    @property
    def architecture(self) -> str:
        return self.network.architecture

    @property
    def foreground_cells(self) -> int:
        """How many features of `Foreground` pooled heads read."""
        return self.network.middle_grid ** 2 if self.pooling is not None and self.pooling.foreground_s else 0

    @property
    def looks_for_hands(self) -> bool:
        """Whether heads read features of hands, which are looked for in the whole picture."""
        return self.pooling is not None and self.pooling.hands > 0

    @property
    def input_size_hw(self) -> tuple[int, int]:
        assert self.network.input_size_hw is not None
        return self.network.input_size_hw

    @property
    def warm_s(self) -> float:
        """Seconds from the first frame after a reset to the first whose scores count."""
        return max(0, self.warmup_frames - 1) / self.frame_rate

    @property
    def now_s(self) -> float:
        """Seconds from the first to the last frame that scores of the moment are of."""
        frames = 1 if self.pooling is None else self.pooling.now_clips * self.clip_frames
        return (frames - 1) / self.frame_rate

    @property
    def window_s(self) -> float:
        """How long a full window is, in seconds, such that its middle is half of that ago: on average, a causal model's
        newest clip has half of its frames, and the clip of a bidirectional one ended half a hop ago."""
        hop = self.network.hop or max(1, self.network.segments // 4)
        growing = (1 - self.clip_frames) / 2 if self.network.causal else hop - 1
        return max(0.0, self.clip_frames * self.window_clips - 1 + growing) / self.frame_rate

    @model_validator(mode="before")
    @classmethod
    def _map_old_form(cls, values: Any) -> Any:
        """Before `network`, files held its architecture, input size and options apart, some under older names."""
        if not isinstance(values, dict) or "architecture" not in values or "network" in values:
            return values
        if not isinstance(options := values.get("options", {}), dict):
            raise ValueError(f"options={options!r:.80}: a table of options")
        network: dict[Any, Any] = NetworkConfig.of(str(values["architecture"])).model_dump(exclude_unset=True)
        network |= {"input_size_hw": values.get("input_size_hw")}
        network |= {OLD_OPTIONS.get(name, name): value for name, value in options.items()}
        rest = {key: value for key, value in values.items() if key not in ("architecture", "options", "input_size_hw")}
        return {**rest, "network": network}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.heads:
            raise ValueError("heads: at least one head is needed")
        for head, labels in self.heads.items():
            if len(labels) < 2 or len(set(labels)) != len(labels):
                raise ValueError(f"heads.{head}: two or more labels, each once")
        if self.network.input_size_hw is None:
            raise ValueError("network.input_size_hw: two numbers of pixels")
        for name, size_hw in (("input_size_hw", self.input_size_hw), ("cover_hw", self.cover_hw)):
            if min(size_hw) < 16 or max(size_hw) > 4096:
                raise ValueError(f"{name}: sides of 16 to 4096 pixels")
        if self.cover_hw[0] < self.input_size_hw[0] or self.cover_hw[1] < self.input_size_hw[1]:
            raise ValueError("cover_hw: at least input_size_hw")
        if self.pooling is not None and (self.fusion is not None or self.pooling.now_clips > self.window_clips):
            raise ValueError("pooling: at most window_clips for now_clips, and no fusion")
        if self.pooling is not None and self.pooling.hidden and not self.network.motion_features:
            raise ValueError("pooling: a hidden layer only of a network with a motion branch")
        if self.background is not None and not any(self.background in labels for labels in self.heads.values()):
            raise ValueError(f"background: {self.background!r} is a label of no head")
        if unknown := {*self.temperature, *self.window_temperature, *self.multi_label} - set(self.heads):
            raise ValueError(f"temperature, multi_label: no such head {sorted(unknown)}")
        if any(self.background in self.heads[head] for head in self.multi_label):
            raise ValueError("multi_label: heads without a label for background")
        return self


def check_background(label: str, known: Collection[str], where: str) -> None:
    """Raises UsageError for a label of background that is none of those known."""
    if label not in known:
        [near] = get_close_matches(label, known, n=1, cutoff=0.0)
        raise UsageError(f"--background {label!r}, no label of {where}", f"one of its {len(known)} labels",
                         f"did you mean {near!r}?")
