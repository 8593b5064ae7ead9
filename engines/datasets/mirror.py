"""What a horizontal flip does to labels, read from their names.

    mirror_labels(("Swiping Left", "Swiping Right", "Stop Sign"))   -> {"Swiping Left": "Swiping Right", and back}
    mirror_labels(("turn left", "stop"))                            -> {"turn left": ""}: no label for it
"""

import re
from collections.abc import Sequence

_OPPOSITES = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise",
              "cw": "ccw", "ccw": "cw", "leftwards": "rightwards", "rightwards": "leftwards"}
# "right" is no direction in "pulling it right out"; words may be joined by _ and -, as class folders have it.
_WORD = re.compile(r"(?<![A-Za-z])(" + "|".join(sorted(_OPPOSITES, key=len, reverse=True))
                   + r")(?![A-Za-z])(?!\s+(?:out|away|now|before|after)\b)", re.IGNORECASE)


def mirror_labels(labels: Sequence[str]) -> dict[str, str]:
    """{label: its label in a mirror} of the labels that name a direction; "" where the list has none for it."""
    return {label: swapped if (swapped := _WORD.sub(_swap, label)) in labels else ""
            for label in labels if _WORD.search(label)}


def _swap(match: re.Match[str]) -> str:
    word, other = match[0], _OPPOSITES[match[0].lower()]
    return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other
