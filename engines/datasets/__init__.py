"""Datasets people have, read from their own annotation files; knows no training.

    dataset = open_dataset("epic-kitchens-100")          # logs what it recognised
    dataset.splits["train"][0].labels                    # {"verb": "open", "noun": "door"}
"""

from engines.datasets.base import Dataset, Media, Problem, Segment
from engines.datasets.readers import open_dataset

__all__ = ["Dataset", "Media", "Problem", "Segment", "open_dataset"]
