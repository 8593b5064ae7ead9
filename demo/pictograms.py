"""What the labels of the model in use look like, for the page: the stroke of a rendered gesture, or a recording.

    GET /live/pictograms    {"circlecc": {"path": "M87 9L80 4...", "seconds": 3.4},
                             "wave": {"clip": "/teach/clips/wave/3.mp4"}}

A path lies within 100 x 100. A label of which neither is there is left out.
"""

from functools import cache
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter

from demo.clip_store import ClipStore
from demo.live_sessions import LiveSessions
from engines.synthetic.strokes import DURATIONS_S, LABELS, Points, clear_stroke

DRAWINGS = 40  # of which the one nearest to their mean is shown
CORNERS = 24  # of a path
SIDE, MARGIN = 100, 12


def pictograms_router(sessions: LiveSessions, store: ClipStore) -> APIRouter:
    """The route under /live."""
    router = APIRouter(prefix="/live")

    @router.get("/pictograms")
    def pictograms() -> dict[str, dict[str, Any]]:
        heads = sessions.recognizer.contract.heads
        recorded = {clip.label: clip.number for clip in store.clips()}  # the latest of each
        found: dict[str, dict[str, Any]] = {}
        for label in dict.fromkeys(label for labels in heads.values() for label in labels):
            if label in recorded:
                found[label] = {"clip": f"/teach/clips/{quote(label, safe='')}/{recorded[label]}.mp4"}
            elif label in LABELS:
                found[label] = {"path": stroke_path(label), "seconds": DURATIONS_S[label][1]}
        return found

    return router


@cache
def stroke_path(label: str) -> str:
    """The most typical of some drawings of a rendered gesture, as the `d` of an SVG path, in the order it is drawn."""
    rng = np.random.default_rng(0)
    drawings_NP2 = np.stack([_centred(clear_stroke(label, rng)[0]) for _ in range(DRAWINGS)])
    far_N = np.linalg.norm(drawings_NP2 - drawings_NP2.mean(axis=0), axis=-1).mean(axis=1)
    points = MARGIN + (SIDE - 2 * MARGIN) * drawings_NP2[far_N.argmin()]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _centred(points: Points) -> Points:
    """CORNERS points evenly along a drawing, in the middle of a unit box."""
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    even = np.linspace(0, way[-1], CORNERS)
    along = np.column_stack([np.interp(even, way, each) for each in points.T])
    low, extent = along.min(axis=0), np.ptp(along, axis=0)
    return np.asarray((along - low + (extent.max() - extent) / 2) / extent.max())
