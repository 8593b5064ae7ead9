"""The one place where a camera image becomes network input. Training, evaluation, live and UI all come here.

    pixels_u8 = prepare(image_bgr, contract)              # any size -> the model's size, still BGR uint8
    frames_BCHW = normalise(pixels_u8[None], contract)    # what the network sees; compiled engines do this inside
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contract import Contract


def prepare(image_bgr: NDArray[np.uint8], contract: Contract) -> NDArray[np.uint8]:
    """Scales a BGR image [H, W, 3] to cover the contract's `cover_hw` and centre-crops it to `input_size_hw`."""
    return fit(image_bgr, contract.cover_hw, contract.input_size_hw, contract.resize_filter)


def fit(image_bgr: NDArray[np.uint8], cover_hw: tuple[int, int], size_hw: tuple[int, int],
        resize_filter: str = "area") -> NDArray[np.uint8]:
    """Scales an image so that it just covers `cover_hw`, then takes the centre of `size_hw`; no bars, no distortion.

    The crop is taken first, in camera pixels, so that only what is kept is resampled. Enlarging is bilinear.
    """
    height, width = image_bgr.shape[:2]
    scale = max(cover_hw[0] / height, cover_hw[1] / width)
    crop_h = min(height, max(1, round(size_hw[0] / scale)))
    crop_w = min(width, max(1, round(size_hw[1] / scale)))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    crop = image_bgr[top:top + crop_h, left:left + crop_w]
    if resize_filter == "area":
        crop = _halved(crop, size_hw)
    shrink = cv2.INTER_AREA if resize_filter == "area" and scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (size_hw[1], size_hw[0]), interpolation=shrink), dtype=np.uint8)


def _halved(image_bgr: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Averages 2x2 blocks while the image is four times too large or more: area averaging at a third of the cost."""
    while True:
        height, width = image_bgr.shape[0] // 2, image_bgr.shape[1] // 2
        if height < 2 * size_hw[0] or width < 2 * size_hw[1]:
            return image_bgr
        even = image_bgr[:2 * height, :2 * width]
        image_bgr = np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def normalise(frames_u8_BHWC: NDArray[np.uint8], contract: Contract) -> NDArray[np.float32]:
    """Pixels BGR uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: the contract's colour order, scale, mean and std."""
    ordered = frames_u8_BHWC[..., ::-1] if contract.colour == "RGB" else frames_u8_BHWC
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    values = (ordered.astype(np.float32) * np.float32(contract.value_scale) - mean) / std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
