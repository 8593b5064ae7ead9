"""How GSM and GSF augment clips for training: RandAugment (GSF), multi-scale crop, flip.

Everything is drawn once for a clip, but RandAugment's interpolation, which is drawn for each frame as published.
RandAugment: Cubuk et al., CVPR Workshops 2020 (arXiv 1909.13719), in the form "rand-m9-mstd0.5": two of 15 operations,
with replacement, each done with probability 1/2, at a strength of 9 of 10 give or take 0.5.

Legend: T frames, H W an image, uint8 BGR."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Images = NDArray[np.uint8]
Rng = np.random.Generator
SCALES = (1.0, 0.875, 0.75, 0.66)
MAX_SCALE_STEPS = 1  # between the scales of a crop's width and height
SNAP = 3  # pixels: a side so near the input's becomes the input's
STRENGTH, SPREAD, MAX_STRENGTH, OPERATIONS, PROBABILITY = 9.0, 0.5, 10.0, 2, 0.5
FILL = (124, 116, 104)  # RGB


def crop_sizes(image_hw: tuple[int, int], input_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """The (height, width) of every possible crop, ordered by height, then width, larger before smaller."""
    short = min(image_hw)
    sides = [int(short * scale) for scale in SCALES]
    heights, widths = ([wanted if abs(side - wanted) < SNAP else side for side in sides] for wanted in input_hw)
    return [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= MAX_SCALE_STEPS]


def crop_offsets(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """The 13 (top, left) of a crop: corners, centre, middles of the sides, and half-way from the corners to it."""
    y, x = ((image - crop) // 4 for image, crop in zip(image_hw, crop_hw, strict=True))
    quarters = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(top * y, left * x) for top, left in quarters]


def multi_scale_crop(images_THWC: Images, input_hw: tuple[int, int], rng: Rng) -> Images:
    """One of the crops at one of the offsets, resized to the input's size [T, *input_hw, 3]."""
    image_hw = (images_THWC.shape[1], images_THWC.shape[2])
    sizes = crop_sizes(image_hw, input_hw)
    height, width = sizes[int(rng.integers(len(sizes)))]
    offsets = crop_offsets(image_hw, (height, width))
    top, left = offsets[int(rng.integers(len(offsets)))]
    crops = images_THWC[:, top:top + height, left:left + width]
    return np.stack([np.asarray(cv2.resize(crop, input_hw[::-1]), np.uint8) for crop in crops])


def rand_augment(images_THWC: Images, rng: Rng) -> Images:
    """Up to two operations at one strength for the whole clip, at the same size."""
    strength = float(np.clip(rng.normal(STRENGTH, SPREAD), 0, MAX_STRENGTH)) / MAX_STRENGTH
    names = list(_OPERATIONS)
    chosen = [_OPERATIONS[names[int(rng.integers(len(names)))]](strength, rng) for _ in range(OPERATIONS)
              if rng.random() < PROBABILITY]
    if not chosen:
        return images_THWC
    changed = []
    for image_bgr in images_THWC:
        picture = Image.fromarray(np.ascontiguousarray(image_bgr[..., ::-1]))
        filter_ = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
        for operation in chosen:
            picture = operation(picture, filter_)
        changed.append(np.asarray(picture, np.uint8)[..., ::-1])
    return np.ascontiguousarray(np.stack(changed))


Operation = Callable[[Image.Image, Image.Resampling], Image.Image]
OperationFactory = Callable[[float, Rng], Operation]  # strength 0..1, and what else is drawn for a clip


def _with_strength(change: Callable[[Image.Image, float], Image.Image]) -> OperationFactory:
    return lambda strength, _: lambda image, __: change(image, strength)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> OperationFactory:
    return _with_strength(lambda image, strength: kind(image).enhance(0.1 + 1.8 * strength))


def _affine(matrix: Callable[[float, Image.Image], tuple[float, ...]], most: float) -> OperationFactory:
    """An affine transform by up to `most`, one way or the other."""
    def make(strength: float, rng: Rng) -> Operation:
        by = most * strength * (1 if rng.random() < 0.5 else -1)
        return lambda image, filter_: image.transform(image.size, Image.Transform.AFFINE, matrix(by, image),
                                                      resample=filter_, fillcolor=FILL)
    return make


def _rotate(strength: float, rng: Rng) -> Operation:
    degrees = 30.0 * strength * (1 if rng.random() < 0.5 else -1)
    return lambda image, filter_: image.rotate(degrees, resample=filter_, fillcolor=FILL)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    added = min(128, int(110 * strength))
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * len(image.getbands()))


_OPERATIONS: dict[str, OperationFactory] = {
    "contrast to full": _with_strength(lambda image, _: ImageOps.autocontrast(image)),
    "equalise": _with_strength(lambda image, _: ImageOps.equalize(image)),
    "invert": _with_strength(lambda image, _: ImageOps.invert(image)), "rotate": _rotate,
    "posterise": _with_strength(lambda image, strength: ImageOps.posterize(image, max(1, int(4 * strength)))),
    "solarise": _with_strength(lambda image, strength: ImageOps.solarize(image, min(256, int(256 * strength)))),
    "solarise added": _with_strength(_solarize_add),
    "colour": _enhance(ImageEnhance.Color), "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness), "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear x": _affine(lambda by, _: (1, by, 0, 0, 1, 0), 0.3),
    "shear y": _affine(lambda by, _: (1, 0, 0, by, 1, 0), 0.3),
    "move x": _affine(lambda by, image: (1, 0, by * image.width, 0, 1, 0), 0.45),
    "move y": _affine(lambda by, image: (1, 0, 0, 0, 1, by * image.height), 0.45)}
