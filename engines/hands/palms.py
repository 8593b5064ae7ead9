"""What the palm detector's outputs say: palms with seven points each, one for each hand.

The detector (Zhang et al. 2020, arXiv 2006.10214, section 2.1) is a single-shot one with 2,016 anchors on its input of
192 x 192. Constants are those of MediaPipe's graph PalmDetectionCpu, but for LEAST_SCORE."""

import functools
from dataclasses import dataclass

import numpy as np

from engines.hands.crop import Floats

INPUT_PIXELS = 192
GRIDS = ((8, 2), (16, 6))  # (pixels between anchors, anchors at each place)
SCORE_LIMIT = 100.0  # of raw scores
LEAST_SCORE = 0.3  # 0.5 as published
LEAST_OVERLAP = 0.3  # intersection over union from which two boxes are of one palm
POINTS = (0, 5, 9, 13, 17, 1, 2)  # the seven points, as landmarks of the hand: wrist, four knuckles, thumb


@dataclass(frozen=True, slots=True)
class Palm:
    """A palm in the detector's input, in pixels of it. points: [7, 2], as in POINTS."""

    score: float
    box_xyxy: Floats
    points: Floats


@functools.cache
def anchors() -> Floats:
    """Centres x, y of the 2,016 anchors, in pixels of the input, in the order of the outputs. [2016, 2]"""
    grids = []
    for stride, each in GRIDS:
        centres = np.arange(INPUT_PIXELS // stride) * stride + stride / 2
        y, x = np.meshgrid(centres, centres, indexing="ij")
        grids.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), each, 0))
    return np.concatenate(grids).astype(np.float32)


def decode_palms(boxes: Floats, scores: Floats) -> list[Palm]:
    """Palms, the surest first. boxes: [2016, 18], centre, width, height and seven points, each from its anchor, in
    pixels; scores: [2016], logits. Values that are not finite are no palms."""
    likely = np.asarray(1 / (1 + np.exp(-np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT))), np.float32)
    found = np.flatnonzero((likely >= LEAST_SCORE) & np.isfinite(boxes).all(1))
    found = found[np.argsort(-likely[found], kind="stable")]
    points = boxes[found].reshape(-1, 9, 2)  # centre, size, seven points
    points[:, [0, *range(2, 9)]] += anchors()[found, None]
    corners = np.concatenate([points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2], 1)
    return merge_palms(likely[found], corners, points[:, 2:])


def merge_palms(scores: Floats, boxes_xyxy: Floats, points: Floats) -> list[Palm]:
    """One palm for each group of boxes that overlap the surest of them: their mean, weighted by score.
    scores: [N], falling; boxes_xyxy: [N, 4]; points: [N, 7, 2]."""
    palms, left = [], np.arange(len(scores))
    while len(left):
        same = _overlap(boxes_xyxy[left[0]], boxes_xyxy[left]) > LEAST_OVERLAP
        same[0] = True  # even a box without area
        group = left[same]
        palms.append(Palm(float(scores[group[0]]), np.average(boxes_xyxy[group], 0, scores[group]),
                          np.average(points[group], 0, scores[group])))
        left = left[~same]
    return palms


def _overlap(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box with each."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), 1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], 1) - common
    return np.asarray(common / np.maximum(union, 1e-9), np.float32)
