"""Names that a user chooses from. Imports nothing, so that the command line's help is instant."""

from __future__ import annotations

from typing import Literal

# auto: as the dataset's files say. jester is read as something-v1, sense as folders.
DatasetKind = Literal["auto", "epic", "something-v2", "something-v1", "jester", "diving48", "kinetics", "folders",
                      "sense", "egogestar"]
ClassOrder = Literal["sorted", "lines"]  # numbers of Something-Something V1's and Jester's classes
