"""Random augmentation that is the same for all frames of a stretch of video: one camera, one light, one lens."""

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class Augmentation:
    """Geometry and light, drawn once from `rng` and applied frame by frame: `augmentation(image_bgr) -> image_bgr`.
    size_hw: of the result; strength: 0 gives plain rescaling; mirror: flip left and right; mix: perhaps shines through.
    """

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int], strength: float = 1.0,
                 mirror: bool = False, mix: Image | None = None) -> None:
        self._rng, self._size_hw = rng, size_hw
        self._zoom = float(np.exp(rng.uniform(-0.22, 0.22) * strength))
        self._shift = rng.uniform(-0.12, 0.12, 2) * strength
        self._angle = float(rng.uniform(-9, 9) * strength)
        self._shake = rng.uniform(0, 0.006) * strength * (rng.random() < 0.5)
        self._mirror = mirror
        gain = np.exp(rng.uniform(-0.4, 0.4) * strength) * np.exp(rng.uniform(-0.12, 0.12, 3) * strength)
        gamma, offset = np.exp(rng.uniform(-0.4, 0.4) * strength), rng.uniform(-25, 25) * strength
        ramp = np.arange(256)[:, None] / 255.0
        table = np.clip(255 * ramp ** gamma * gain + offset, 0, 255)
        self._table: Image = table.astype(np.uint8)[None]  # [1, 256, 3]
        self._grey = float(rng.uniform(0, 0.8)) * (rng.random() < 0.3) * strength
        self._noise = float(rng.uniform(0, 8)) * (rng.random() < 0.5) * strength
        self._blur = rng.random() < 0.15 * strength
        self._mix = mix if mix is not None and rng.random() < 0.35 * strength else None
        self._mix_share = float(rng.uniform(0.05, 0.35))

    def affine_matrix(self, from_hw: tuple[int, int]) -> NDArray[np.float64]:
        """From source pixels to result pixels, [2, 3]; draws the camera's shake anew."""
        height, width = self._size_hw
        scale = self._zoom * max(height / from_hw[0], width / from_hw[1])
        turn = cv2.getRotationMatrix2D((from_hw[1] / 2, from_hw[0] / 2), self._angle, scale)
        matrix = np.asarray(turn, dtype=np.float64)
        jitter = self._rng.standard_normal(2) * self._shake
        matrix[:, 2] += np.array([width / 2 - from_hw[1] / 2, height / 2 - from_hw[0] / 2])
        matrix[:, 2] += (self._shift + jitter) * (width, height)
        if self._mirror:
            matrix[0] = -matrix[0]
            matrix[0, 2] += width - 1
        return matrix

    def __call__(self, image_bgr: Image) -> Image:
        height, width = self._size_hw
        image = cv2.warpAffine(image_bgr, self.affine_matrix(image_bgr.shape[:2]), (width, height),
                               flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return self.change_light(np.asarray(image, dtype=np.uint8))

    def change_light(self, image_bgr: Image) -> Image:
        """Colour, contrast, softness and noise only; for an image of the result's size."""
        image = image_bgr
        if self._mix is not None:
            image = np.asarray(cv2.addWeighted(image, 1 - self._mix_share, self._mix, self._mix_share, 0), np.uint8)
        image = np.asarray(cv2.LUT(image, self._table), dtype=np.uint8)
        if self._grey > 0:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            image = np.asarray(cv2.addWeighted(image, 1 - self._grey, grey, self._grey, 0), dtype=np.uint8)
        if self._blur:
            image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0), dtype=np.uint8)
        if self._noise > 0:
            noise = self._rng.standard_normal(image.shape, dtype=np.float32) * self._noise
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        return image
