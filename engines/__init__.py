"""gatestream's tensor programs: networks, model files, engines, training. Knows no camera and no time of day.

    import engines
    model = engines.load("gesture")                              # model.contract, model.network
    engine = engines.compile(model, engine="openvino", slots=4)
    result = engine.step(frames_u8_BHWC, slots)

Names are loaded on first use, so that running a compiled engine never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.model import official as official
    from engines.model.file import load as load
    from engines.networks.causal import causal as causal
    from engines.networks.network import build as build
    from engines.networks.network import clip_scores as clip_scores
    from engines.runtime.registry import compile as compile
    from engines.runtime.registry import export as export

_HOMES = {"load": "engines.model.file", "compile": "engines.runtime.registry", "export": "engines.runtime.registry",
          "build": "engines.networks.network", "causal": "engines.networks.causal",
          "clip_scores": "engines.networks.network"}
__all__ = ["build", "causal", "clip_scores", "compile", "export", "load", "official"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name != "official" and name not in _HOMES:
        raise AttributeError(f"module 'engines' has no attribute {name!r}")
    from engines.errors import imports_of

    with imports_of("train", "torch", f"engines.{name}"):
        if name == "official":
            return importlib.import_module("engines.model.official")
        return getattr(importlib.import_module(_HOMES[name]), name)
