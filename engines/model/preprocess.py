"""The one place where a camera image becomes network input. Training, evaluation, live and UI all come here.
Filters for shrinking: "area" averages what a pixel covers; "bilinear" interpolates and skips what lies between;
"pillow-bilinear" is the Pillow library's, with which the official checkpoints were trained."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import imports_of
from engines.model.contract import Contract


def prepare(image_bgr: NDArray[np.uint8], contract: Contract) -> NDArray[np.uint8]:
    """Scales a BGR image [H, W, 3] to cover the contract's `cover_hw` and centre-crops it to `input_size_hw`."""
    return fit(image_bgr, contract.cover_hw, contract.input_size_hw, contract.resize_filter)


def fit(image_bgr: NDArray[np.uint8], cover_hw: tuple[int, int], size_hw: tuple[int, int],
        resize_filter: str = "area") -> NDArray[np.uint8]:
    """Scales an image so that it just covers `cover_hw`, then takes the centre of `size_hw`; no bars, no distortion.
    The crop is taken first, in camera pixels, so that only what is kept is resampled. Enlarging is bilinear."""
    height, width = image_bgr.shape[:2]
    if resize_filter == "pillow-bilinear":
        covered_hw = covering_size((height, width), cover_hw)
        offset_yx = [round((all_ - part) / 2) for all_, part in zip(covered_hw, size_hw, strict=True)]
        return resize_window(image_bgr, covered_hw, offset_yx, size_hw)
    crop_h, crop_w = _crop_size((height, width), cover_hw, size_hw)
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    crop = image_bgr[top:top + crop_h, left:left + crop_w]
    if resize_filter == "area":
        crop = _halve(crop, size_hw)
    smaller = height > cover_hw[0] and width > cover_hw[1]
    shrink = cv2.INTER_AREA if resize_filter == "area" and smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (size_hw[1], size_hw[0]), interpolation=shrink), dtype=np.uint8)


def shrinkable(image_hw: tuple[int, int], contract: Contract) -> int:
    """By how much, a power of two, a decoder may shrink a picture on its own: `prepare` would average such blocks. A
    model that looks for hands looks at the picture as it is."""
    if contract.resize_filter != "area" or contract.looks_for_hands:
        return 1
    return 1 << _halvings(_crop_size(image_hw, contract.cover_hw, contract.input_size_hw), contract.input_size_hw)


def visible_part(image_hw: tuple[int, int], contract: Contract) -> tuple[float, float]:
    """Which part of an image's height and width, around its middle, the network sees; in (0, 1]."""
    height, width = _crop_size(image_hw, contract.cover_hw, contract.input_size_hw)
    return height / image_hw[0], width / image_hw[1]


def _crop_size(image_hw: tuple[int, int], cover_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what `fit` keeps of an image, in its own pixels."""
    scale = max(cover_hw[0] / image_hw[0], cover_hw[1] / image_hw[1])
    height, width = (min(all_, max(1, round(wanted / scale))) for all_, wanted in zip(image_hw, size_hw, strict=True))
    return height, width


def _halvings(image_hw: tuple[int, int], size_hw: tuple[int, int]) -> int:
    """How often an image can be halved and still be twice as large as wanted."""
    return max(0, min(all_ // (2 * wanted) for all_, wanted in zip(image_hw, size_hw, strict=True)).bit_length() - 1)


def _halve(image_bgr: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Averages 2x2 blocks while the image is four times too large or more: area averaging at a third of the cost."""
    for _ in range(_halvings((image_bgr.shape[0], image_bgr.shape[1]), size_hw)):
        height, width = image_bgr.shape[0] // 2, image_bgr.shape[1] // 2
        even = image_bgr[:2 * height, :2 * width]
        image_bgr = np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return image_bgr


def covering_size(image_hw: tuple[int, int], cover_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of a whole image that just covers `cover_hw`: one side exact, the other rounded down."""
    (height, width), (cover_h, cover_w) = image_hw, cover_hw
    if cover_h * width >= cover_w * height:
        return cover_h, int(cover_h * width / height)
    return int(cover_w * height / width), cover_w


def resize_window(image_bgr: NDArray[np.uint8], covered_hw: tuple[int, int], offset_yx: Sequence[int],
                  size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The window of `size_hw` at `offset_yx` of the image scaled to `covered_hw` by Pillow's bilinear filter."""
    with imports_of("train", "pillow", "a model that was trained with Pillow's filter"):
        from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image_bgr))
    scale_y, scale_x = picture.height / covered_hw[0], picture.width / covered_hw[1]
    (top, left), (height, width) = offset_yx, size_hw
    box = (left * scale_x, top * scale_y,
           min((left + width) * scale_x, picture.width), min((top + height) * scale_y, picture.height))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box))


def normalise(frames_u8_BHWC: NDArray[np.uint8], contract: Contract) -> NDArray[np.float32]:
    """Pixels BGR uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: the contract's colour order, scale, mean and std.
    Compiled engines do this inside."""
    ordered = frames_u8_BHWC[..., ::-1] if contract.colour == "RGB" else frames_u8_BHWC
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    values = (ordered.astype(np.float32) * np.float32(contract.value_scale) - mean) / std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
