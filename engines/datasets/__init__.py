"""Datasets people have, read from their own annotation files; knows no training.

    dataset = open_dataset("epic-kitchens-100")          # logs what it recognised
    dataset.splits["train"][0].labels                    # {"verb": "open", "noun": "door"}
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.datasets.base import Dataset, Media, Problem, Segment
    from engines.datasets.readers import open_dataset

__all__ = ["Dataset", "Media", "Problem", "Segment", "open_dataset"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line's help needs `kinds.py` only.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'readers' if name == 'open_dataset' else 'base'}"), name)
