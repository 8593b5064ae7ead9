"""Laws of preprocessing: every image becomes the model's size, upright, centred, undistorted, in the stated values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fakes import contract

from engines.model.contract import Contract
from engines.model.preprocess import covering_size, fit, normalise, prepare, resize_window
from engines.training.pixels import normalise as normalise_on_device

SIZES_HW = [(480, 640), (640, 480), (1080, 1920), (1, 1), (6000, 8000), (1, 4000), (4000, 1), (17, 15), (2, 3)]
COVER_AND_INPUT_HW = [((72, 96), (72, 96)), ((96, 128), (72, 96)), ((256, 256), (224, 224))]


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize(("cover_hw", "input_hw"), COVER_AND_INPUT_HW)
@pytest.mark.parametrize("resize_filter", ["area", "bilinear", "pillow-bilinear"])
def test_any_size_becomes_the_models_own(size_hw: tuple[int, int], cover_hw: tuple[int, int],
                                         input_hw: tuple[int, int], resize_filter: str) -> None:
    colour = (10, 120, 240)
    image = np.full((*size_hw, 3), colour, np.uint8)
    made = prepare(image, contract(cover_hw=cover_hw, input_size_hw=input_hw, resize_filter=resize_filter))
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((*input_hw, 3), np.uint8, True)
    assert (made == colour).all()  # no bars, no channel swap
    assert (image == colour).all()


def test_an_image_of_the_right_size_passes_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    assert np.array_equal(prepare(image, contract(cover_hw=(72, 96), input_size_hw=(72, 96))), image)


@pytest.mark.parametrize("size_hw", [(480, 640), (720, 1280), (640, 480), (100, 100)])
def test_cropping_first_sees_what_scaling_the_whole_would(size_hw: tuple[int, int]) -> None:
    """Against the plain reading of the contract: scale all, then cut out the centre. A smooth image shows shifts."""
    rows, columns = np.mgrid[0:size_hw[0], 0:size_hw[1]] / max(size_hw)
    image = np.stack([200 * columns, 200 * rows, 100 * (rows + columns)], axis=2).astype(np.uint8)
    cover, size = (96, 128), (72, 96)
    scale = max(cover[0] / size_hw[0], cover[1] / size_hw[1])
    whole = cv2.resize(image, (round(size_hw[1] * scale), round(size_hw[0] * scale)), interpolation=cv2.INTER_LINEAR)
    top, left = (whole.shape[0] - size[0]) // 2, (whole.shape[1] - size[1]) // 2
    wanted = whole[top:top + size[0], left:left + size[1]]
    made = prepare(image, contract(cover_hw=cover, input_size_hw=size))
    assert np.abs(made.astype(int) - wanted).max() <= 3


def test_area_averages_where_bilinear_skips() -> None:
    stripes = np.zeros((720, 960, 3), np.uint8)
    stripes[:, ::10] = 250  # a tenth of every block of ten
    area, bilinear = (prepare(stripes, contract(cover_hw=(72, 96), input_size_hw=(72, 96), resize_filter=name))
                      for name in ("area", "bilinear"))
    assert abs(area.mean() - 25) < 1
    assert area.min() > 0
    assert (bilinear == 0).all()


@pytest.mark.parametrize(("colour", "order"), [("RGB", [2, 1, 0]), ("BGR", [0, 1, 2])])
def test_normalise_follows_the_contract(colour: str, order: list[int]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    stated = contract(colour=colour, value_scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    made = normalise(frames, stated)
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((2, 3, 16, 16), np.float32, True)
    for k, (channel, mean, std) in enumerate(zip(order, stated.mean, stated.std, strict=True)):
        assert np.allclose(made[:, k], (frames[..., channel] * 0.5 - mean) / std, atol=1e-5)


def test_large_images_shrink_as_one_area_average_would() -> None:
    """Shrinking by halves is a matter of cost only: on a camera's picture the values are those of one average."""
    from engines.synthetic import Simulation

    image = Simulation(0).frame(60)
    for crop in (image, image[:479, :639]):
        made = prepare(crop, contract(cover_hw=(72, 96), input_size_hw=(72, 96)))
        once = cv2.resize(crop, (96, 72), interpolation=cv2.INTER_AREA)
        assert np.abs(made.astype(int) - once).mean() < 0.5


def views(image_bgr: np.ndarray, stated: Contract, crops: int) -> np.ndarray:
    """The crops that GSM and GSF average scores over in a test, uint8 [crops, H, W, 3].

    crops: 1 (centre), 3 (left, right and centre at mid height), 5 (corners and centre), or 10 (those, each followed
    by its mirror image).
    """
    size_hw = stated.input_size_hw
    covered_hw = covering_size((image_bgr.shape[0], image_bgr.shape[1]), stated.cover_hw)
    y, x = ((all_ - kept) // 4 for all_, kept in zip(covered_hw, size_hw, strict=True))
    corners = [(0, 0), (0, 4 * x), (4 * y, 0), (4 * y, 4 * x), (2 * y, 2 * x)]
    tables = {3: [(2 * y, 0), (2 * y, 4 * x), (2 * y, 2 * x)], 5: corners, 10: corners}
    if crops == 1:
        return fit(image_bgr, stated.cover_hw, size_hw, "pillow-bilinear")[None]
    cut = [resize_window(image_bgr, covered_hw, offset, size_hw) for offset in tables[crops]]
    return np.stack([view for crop in cut for view in ((crop, crop[:, ::-1]) if crops == 10 else (crop,))])


OFFICIAL: dict[str, dict[str, Any]] = {
    "bninception": {"cover_hw": (256, 256), "input_size_hw": (224, 224), "colour": "BGR", "value_scale": 1.0,
                    "mean": (104, 117, 128), "std": (1, 1, 1)},
    "inceptionv3": {"cover_hw": (261, 261), "input_size_hw": (229, 229), "colour": "BGR", "value_scale": 1.0,
                    "mean": (104, 117, 128), "std": (1, 1, 1)},
    "resnet50": {"cover_hw": (256, 256), "input_size_hw": (224, 224)}}


def test_official_preprocessing_is_matched_within_two_grey_levels(
        shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(shared / "reference"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rng_for = __import__("fill").rng_for
    vectors = np.load(shared / "reference" / "vectors_preprocess.npz")
    facts = json.loads((shared / "reference" / "vectors_preprocess.json").read_text())
    differences = []
    for name in vectors.files:
        net, size, crops = name.split("/")[:3]
        height, width = map(int, size.split("x"))
        stated = contract(resize_filter="pillow-bilinear", **OFFICIAL[net.split("_")[1]])
        clips = []
        for i in range(2):
            g = rng_for(f"pp.{size}.{i}")
            coarse, fine = g.uniform(0, 255, (12, 16, 3)), g.uniform(-20, 20, (height, width, 3))
            rows, columns = np.arange(height) * 12 // height, np.arange(width) * 16 // width
            image_rgb = np.clip(np.rint(coarse[rows][:, columns] + fine), 0, 255).astype(np.uint8)
            clips.append(normalise(views(image_rgb[..., ::-1], stated, int(crops.removeprefix("crops"))), stated))
        made = np.stack(clips, axis=1).reshape(-1, *stated.input_size_hw)  # crops, then frames, then channels
        fact = facts[f"{net}/{size}/{crops}"]
        assert list(made.shape) == fact["shape"]
        grey = stated.value_scale / max(stated.std)
        assert abs(made.mean() - fact["mean"]) < 0.05 * grey
        scale = np.tile(np.array(stated.std) / stated.value_scale, len(made) // 3)[:, None, None]
        differences.append(np.abs((made[:, 5::32, 7::32] - vectors[name]) * scale).max())
    assert len(differences) > 70
    assert max(differences) < 2


def test_three_five_and_ten_views_lie_where_they_should() -> None:
    rows, columns = np.mgrid[0:256, 0:512]
    image = np.stack([rows, columns // 2, columns // 2], axis=2).astype(np.uint8)
    stated = contract(cover_hw=(256, 256), input_size_hw=(224, 224))
    five, ten, three = (views(image, stated, crops) for crops in (5, 10, 3))
    assert five[:, 0, 0, :2].tolist() == [[0, 0], [0, 144], [32, 0], [32, 144], [16, 72]]
    assert np.array_equal(ten[0::2], five)
    assert np.array_equal(ten[1::2], five[:, :, ::-1])
    assert three[:, 0, 0, :2].tolist() == [[16, 0], [16, 144], [16, 72]]


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_training_normalises_to_the_same_numbers(colour: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7, 3), np.uint8)
    given = contract(colour=colour, value_scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    wanted = normalise(pixels.reshape(6, 5, 7, 3), given).reshape(2, 3, 3, 5, 7)
    assert np.array_equal(normalise_on_device(torch.from_numpy(pixels), given).numpy(), wanted)
