"""Which network: what `engines.build` takes, a network carries and a model file stores. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import UsageError, first_problem

Group = tuple[float, tuple[int, int, int]]  # share of the channels, (dt, dh, dw) with each of -1, 0, 1


class NetworkConfig(BaseModel):
    """A backbone, the temporal modules at its sites, and a recurrent read-out.

        config = NetworkConfig.of("gsf-mobilenetv2", causal=True, readout_width=128)
        network = engines.build(config, heads={"gesture": 11})

    A field of None is as usual for the backbone or module; `network.config` has what that is.
    """

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
    segments: Annotated[int, Field(ge=1, le=65536)] = 8  # frames of a bidirectional clip
    hop: int | None = None  # on a stream, frames from one clip's scores to the next; None: a quarter of `segments`

    @classmethod
    def of(cls, architecture: str, **options: Any) -> NetworkConfig:
        """The config of "MODULE-BACKBONE" with these fields. Raises UsageError for fields that cannot be."""
        module, _, backbone = architecture.partition("-")
        return cls._checked({"module": module, "backbone": backbone, **options})

    def replace(self, **changes: Any) -> NetworkConfig:
        """The same with other fields. Raises UsageError for fields that cannot be."""
        return self._checked({**self.model_dump(), **changes})

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> NetworkConfig:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            got, wanted = first_problem(error)
            raise UsageError(f"{fields['module']}-{fields['backbone']} with {got}", wanted,
                             "correct it, or leave it out") from None

    @property
    def architecture(self) -> str:
        return f"{self.module}-{self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        if self.readout_width and not self.causal:
            raise ValueError(f"readout_width={self.readout_width} on a bidirectional network: causal=True with it")
        if self.past_shift is not None and not self.causal:
            raise ValueError(f"past_shift={self.past_shift} on a bidirectional network: causal=True with it")
        if self.hop is not None and (self.causal or not 1 <= self.hop <= self.segments):
            on = "a causal network" if self.causal else f"a clip of {self.segments} frames"
            raise ValueError(f"hop={self.hop} on {on}: 1 to {self.segments} on a bidirectional network")
        return self
