"""Small videos of other people's cameras, made by PyAV: every frame says which one it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from stream.frame import Image

SIZE_HW = (64, 96)
RATE = 25
COUNT = 30
INTERLACED = 1 << 18 | 1 << 29  # FFmpeg's AV_CODEC_FLAG_INTERLACED_DCT and _ME
Setup = Callable[[Any], object]


def picture(k: int, size_hw: tuple[int, int] = SIZE_HW) -> Image:
    """Three quarters of their own colour, the fourth black, so that no turn or mirror image is like it; a white block
    in row k // 8 and column k % 8 of the black quarter says the number."""
    height, width = size_hw
    image = np.zeros((height, width, 3), np.uint8)
    image[:height // 2, :width // 2] = 200, 40, 40
    image[:height // 2, width // 2:] = 40, 200, 40
    image[height // 2:, :width // 2] = 40, 40, 200
    row, column = divmod(k, 8)
    block_h, block_w = height // 2 // 4, width // 2 // 8
    top, left = height // 2 + row * block_h, width // 2 + column * block_w
    image[top:top + block_h, left:left + block_w] = 255
    return image


def number(image: Image) -> int:
    """Which frame a picture shows, of the size in which `picture` made it; -1 for another picture."""
    height, width = image.shape[:2]
    black = image[height // 2:, width // 2:].mean(axis=2)
    blocks = black[:height // 2 // 4 * 4, :width // 2 // 8 * 8].reshape(4, height // 2 // 4, 8, width // 2 // 8)
    lit = blocks.mean(axis=(1, 3)).ravel()
    return int(lit.argmax()) if lit.max() > 120 and np.sort(lit)[-2] < 100 else -1


def difference(image: Image, k: int) -> float:
    """Mean absolute difference in grey levels from what was filmed; infinite for another size."""
    wanted = picture(k, (image.shape[0], image.shape[1]))
    return float(np.abs(image.astype(int) - wanted).mean())


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Puts back how this thread is scheduled: SVT-AV1 makes the one that encodes, and all that it starts from then on,
    real-time where it may, as root, and whatever of them computes leaves a twentieth of the processor to the others."""
    before = (os.sched_getscheduler(0), os.sched_getparam(0)) if sys.platform == "linux" else None
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, *before)


@ordinary_priority()
def write(path: Path, *, codec: str = "libx264", pixels: str = "yuv420p", count: int = COUNT, rate: int = RATE,
          size_hw: tuple[int, int] = SIZE_HW, options: dict[str, str] | None = None, setup: Setup = lambda _: None,
          times: Sequence[int] | None = None, before: Callable[[Any], Callable[[], None]] | None = None,
          shape: Callable[[Image], Image] = lambda image: image, container: str | None = None,
          container_options: dict[str, str] | None = None) -> Path:
    """A video of `count` frames. setup: changes the stream; times: of each frame, in frames; before: adds a stream
    ahead of it; shape: what is stored of each picture."""
    with av.open(str(path.absolute()), "w", format=container, options=container_options or {}) as output:
        finish = before(output) if before else lambda: None
        stream: Any = output.add_stream(codec, rate=rate, options={"crf": "12", **(options or {})}
                                        if codec.startswith("libx26") else options or {})
        stream.height, stream.width = size_hw
        stream.pix_fmt = pixels
        setup(stream)
        finish()
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shape(picture(k, size_hw))), "bgr24")
            frame.pts, frame.time_base = k if times is None else times[k], Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def still(output: Any, size_hw: tuple[int, int], count: int, disposition: int | None = None) -> Callable[[], None]:
    """Adds a stream of single grey images, one a second, to an output; returns what writes them."""
    stream: Any = output.add_stream("mjpeg", rate=1)
    stream.height, stream.width = size_hw
    stream.pix_fmt = "yuvj420p"
    if disposition is not None:
        stream.disposition = disposition

    def finish() -> None:
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*size_hw, 3), 77, np.uint8), "bgr24")
            frame.pts, frame.time_base = k, Fraction(1, 1)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return finish
