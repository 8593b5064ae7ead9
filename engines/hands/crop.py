"""Turned squares around hands: where a hand is, cut out upright, and the way back into the image.

Coordinates are pixels from the image's top left corner, x right, y down."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.decoding.images import Image

Floats = NDArray[np.float32]

WRIST, MIDDLE_KNUCKLE = 0, 9  # of the 21 landmarks
KNUCKLES = (5, 9, 13)  # index, middle, ring
STABLE = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)  # landmarks that follow the palm rather than the fingertips


@dataclass(frozen=True, slots=True)
class Square:
    """A square in the image. angle: radians by which its upright content is turned clockwise, as seen."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def matrix(self, pixels: int) -> NDArray[np.float64]:
        """[2, 3], from the coordinates of a cut-out of pixels x pixels to those of the image."""
        scale = self.side / pixels
        cos, sin, half = scale * math.cos(self.angle), scale * math.sin(self.angle), pixels / 2
        return np.array([[cos, -sin, self.x - half * (cos - sin)], [sin, cos, self.y - half * (sin + cos)]])

    def cut(self, image_bgr: Image, pixels: int, repeat_edge: bool = True) -> Image:
        """The square as uint8 RGB [pixels, pixels, 3]. repeat_edge: what lies outside the image is its edge; else
        black."""
        border = cv2.BORDER_REPLICATE if repeat_edge else cv2.BORDER_CONSTANT
        cut = cv2.warpAffine(image_bgr, self.matrix(pixels), (pixels, pixels),
                             flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)
        return np.asarray(cv2.cvtColor(cut, cv2.COLOR_BGR2RGB), np.uint8)

    def to_image(self, points: Floats, pixels: int) -> Floats:
        """Points [..., 2 or 3] of the cut-out in the image. A third coordinate is only scaled."""
        matrix, depth = self.matrix(pixels), points[..., 2:] * (self.side / pixels)
        return np.concatenate([points[..., :2] @ matrix[:, :2].T + matrix[:, 2], depth], -1).astype(np.float32)


def whole_image(size_hw: tuple[int, int]) -> Square:
    """The smallest square around the image."""
    return Square(size_hw[1] / 2, size_hw[0] / 2, max(size_hw))


def square_of_palm(box_xyxy: Floats, wrist: Floats, knuckle: Floats) -> Square:
    """The hand around a detected palm: 2.6 times its box, moved half a box towards the fingers, so that the way from
    wrist to middle knuckle points up (MediaPipe's graph PalmDetectionDetectionToRoi)."""
    centre, size = (box_xyxy[:2] + box_xyxy[2:]) / 2, box_xyxy[2:] - box_xyxy[:2]
    return _enlarged(centre, size, _angle(knuckle - wrist), 2.6, 0.5)


def square_of_landmarks(landmarks: Floats) -> Square:
    """Where a hand with these landmarks [21, 2] will be in the next frame: twice the box around its stable ones, moved
    a tenth towards the fingers (MediaPipe's graph HandLandmarkLandmarksToRoi)."""
    ahead = (landmarks[KNUCKLES[0]] + landmarks[KNUCKLES[2]]) / 4 + landmarks[KNUCKLES[1]] / 2
    angle = _angle(ahead - landmarks[WRIST])
    cos, sin = math.cos(angle), math.sin(angle)
    upright = landmarks[list(STABLE)] @ np.array([[cos, -sin], [sin, cos]])  # turned back by the angle
    low, high = upright.min(0), upright.max(0)
    centre = np.array([[cos, -sin], [sin, cos]]) @ ((low + high) / 2)
    return _enlarged(centre, high - low, angle, 2.0, 0.1)


def _angle(upwards: Floats) -> float:
    """Radians, clockwise as seen, from straight up to this direction, in (-pi, pi]."""
    return math.atan2(float(upwards[0]), -float(upwards[1]))


def _enlarged(centre: NDArray[np.floating], size: NDArray[np.floating], angle: float, times: float,
              forwards: float) -> Square:
    ahead = forwards * float(size[1])
    return Square(float(centre[0]) + ahead * math.sin(angle), float(centre[1]) - ahead * math.cos(angle),
                  times * float(size.max()), angle)
