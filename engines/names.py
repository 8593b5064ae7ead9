"""Names that a user chooses from, for the command line: it shows help without importing what they stand for."""

from __future__ import annotations

from typing import Literal

# What a dataset is; auto: as its files say. jester is read as something-v1, sense as folders.
DatasetKind = Literal["auto", "epic", "something-v2", "something-v1", "jester", "diving48", "kinetics", "folders",
                      "sense", "egogestar"]
ClassOrder = Literal["sorted", "lines"]  # numbers of Something-Something V1's and Jester's classes
Precision = Literal["auto", "f32", "bf16", "f16"]  # of training's arithmetic; auto: bf16 where it is fast
