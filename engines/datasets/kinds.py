"""Names that a user chooses from. Imports no reader, so that the command line's help is instant."""

from typing import TYPE_CHECKING, Literal

# What a dataset is: the module whose `READERS` has its reader, in the order in which "auto" tries them.
DATASET_READERS = {
    "epic": "engines.datasets.epic",
    "something-v2": "engines.datasets.something",
    "diving48": "engines.datasets.diving48",
    "kinetics": "engines.datasets.kinetics",
    "something-v1": "engines.datasets.something",
    "jester": "engines.datasets.something",
    "egogestar": "engines.datasets.egogestar",
    "folders": "engines.datasets.folders",
    "sense": "engines.datasets.folders",
}
if TYPE_CHECKING:
    DatasetKind = str
else:
    DatasetKind = Literal[("auto", *DATASET_READERS)]
ClassOrder = Literal["sorted", "lines"]  # numbers of Something-Something V1's and Jester's classes
