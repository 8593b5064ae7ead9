"""What the camera sees: a room that sways with the head, light that drifts, noise, and the hand in front."""

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.synthetic.backgrounds import random_background
from engines.synthetic.hand import Hand, Image, Look
from engines.synthetic.script import Pose

_CLEAR_PLACES = ("curtain", "room", "shelf", "tile", "wall")
_CLEAR_LEVEL = 80.0, 180.0  # mean of the place, of 255
_CLEAR_CONTRAST = 60.0  # between skin and most of the place, of 255
_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
_CLEAR_LOOKS = 24  # hands of which one is chosen
_NOISE_STEPS = 16  # places where the noise tile may start, in each direction
_MARGIN = 0.14  # of the frame on each side, for the camera to sway in


class Scene:
    """One place, one light, one person. `draw` depends on nothing but its arguments and the seed.
    size_hw: frame size in pixels; background_bgr: an image (any size) to stand behind the hand, else one is
    rendered; clear: a place before which the hand stands out, in good light, and nothing else moves."""

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int],
                 background_bgr: NDArray[np.uint8] | None = None, clear: bool = False) -> None:
        self.size_hw = height, width = size_hw
        looks = [Look(rng, clear) for _ in range(_CLEAR_LOOKS if clear else 1)]
        full_hw = (round(height * (1 + 2 * _MARGIN)), round(width * (1 + 2 * _MARGIN)))
        place = str(rng.choice(_CLEAR_PLACES)) if clear else None
        room = (random_background(rng, full_hw, place) if background_bgr is None
                else _cover(background_bgr, full_hw).astype(np.float32))
        cast = np.exp(rng.uniform(0, 0.12) * rng.standard_normal(3))
        level = float(np.exp(0.25 * rng.standard_normal())) if background_bgr is None else 1.0
        if clear:
            mean = max(float(room.mean()), 1.0)
            level = float(np.clip(level * mean, *_CLEAR_LEVEL)) / mean
        self._room: Image = np.clip(room * (cast * level), 0, 255).astype(np.uint8)
        apart = [np.abs(self._room[::8, ::8].astype(float) - look.skin_bgr).max(axis=2) for look in looks]
        contrasts = np.minimum(np.quantile(apart, 0.25, axis=(1, 2)), _CLEAR_CONTRAST)
        self.look = looks[int(contrasts.argmax())]  # the first that stands out, else the one that does most
        self.hand = Hand(self.look, size_hw)
        if rng.random() < 0.6:
            softness = float(rng.uniform(0.3, 1.2) * height / 240 + 0.05)
            self._room = np.asarray(cv2.GaussianBlur(self._room, (0, 0), softness), np.uint8)
        # Sway: slow pans and quick shake, in fractions of the frame; kept within the margin.
        strength = np.array([rng.choice([0.0, rng.uniform(0.01, 0.1)], p=[0.3, 0.7]), rng.uniform(0, 0.025),
                             rng.uniform(0, 0.006)])
        self._sway = np.repeat(strength, 2).reshape(3, 2) * rng.uniform(0.4, 1.0, (3, 2))
        self._sway_hz = np.array([[0.12], [0.6], [2.5]]) * rng.uniform(0.5, 1.8, (3, 2))
        self._sway_phase = rng.uniform(0, 2 * np.pi, (3, 2))
        self._roll = rng.uniform(0, 0.025)
        # Light: gain drifts, and an automatic exposure answers the hand.
        self._gain, self._gain_hz, self._gain_phase = rng.uniform(0, 0.08), rng.uniform(0.03, 0.4), rng.uniform(0, 6.28)
        self._exposure_response = float(rng.choice([0.0, rng.uniform(-0.12, 0.12)], p=[0.6, 0.4]))
        # Standard deviation in camera pixels; a small frame stands for a camera's frame scaled down.
        noise = float(rng.choice([rng.uniform(0, 3), rng.uniform(3, 12)], p=[0.7, 0.3])) * min(height / 240, 1.0) ** 0.5
        grain = rng.integers(0, 256, (height + _NOISE_STEPS, width + _NOISE_STEPS, 3), np.uint8)
        # A little blurred, as cameras and codecs do.
        self._noise: Image = grain if rng.random() < 0.3 else np.asarray(cv2.blur(grain, (2, 2)), np.uint8)
        self._noise_level = noise / max(float(self._noise[:32, :32].std()), 1.0)
        self._noise_seed = int(rng.integers(2 ** 31))
        self._soft = bool(rng.random() < 0.25)
        self._clutter = _Clutter(rng, size_hw) if rng.random() < 0.2 and not clear else None

    def draw(self, pose: Pose, t_s: float) -> Image:
        """The image at `t_s` seconds: uint8 BGR [H, W, 3]."""
        height, width = self.size_hw
        image = self._render_room(t_s)
        if self._clutter is not None:
            self._clutter.draw(image, t_s)
        gain = 1 + self._gain * np.sin(2 * np.pi * self._gain_hz * t_s + self._gain_phase)
        if pose.tip_xy is not None:
            self.hand.draw(image, pose.tip_xy, pose.posture, pose.angle, pose.velocity_xy)
            gain += self._exposure_response * float(np.clip(1.1 - pose.tip_xy[1], 0, 1))
        if self._soft:
            image = np.asarray(cv2.blur(image, (3, 3)), np.uint8)
        left, top = np.random.default_rng((self._noise_seed, round(t_s * 10_000))).integers(0, _NOISE_STEPS, 2)
        tile, share = self._noise[top:top + height, left:left + width], self._noise_level
        return np.asarray(cv2.addWeighted(image, gain, tile, share, -127.5 * share), np.uint8)

    def _render_room(self, t_s: float) -> Image:
        height, width = self.size_hw
        sway = (self._sway * np.sin(2 * np.pi * self._sway_hz * t_s + self._sway_phase)).sum(axis=0)
        sway = np.clip(sway, -0.8 * _MARGIN, 0.8 * _MARGIN)
        roll = self._roll * np.sin(2 * np.pi * self._sway_hz[1, 0] * t_s + self._sway_phase[2, 1])
        size_wh, full_wh = np.array([width, height]), np.array(self._room.shape[1::-1])
        turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        matrix = np.column_stack([turn, full_wh / 2 + sway * size_wh - turn @ (size_wh / 2)])
        return np.asarray(cv2.warpAffine(self._room, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE,
                                         flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP), np.uint8)


class _Clutter:
    """Something that moves and is no hand: a passer-by, a swinging thing, a shadow."""

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
        self._half_xy = rng.uniform(0.04, 0.3, 2) * size_hw[0]
        self._colour = np.clip(rng.uniform(0, 255) + 30 * rng.standard_normal(3), 0, 255)
        self._box = bool(rng.random() < 0.4)
        self._centre, self._reach = rng.uniform(0.1, 0.9, 2), rng.uniform(0.02, 0.7, 2) * (1.0, 0.4)
        self._hz, self._phase = rng.uniform(0.02, 0.3, 2), rng.uniform(0, 2 * np.pi, 2)

    def draw(self, image_bgr: Image, t_s: float) -> None:
        size_wh = image_bgr.shape[1], image_bgr.shape[0]
        centre = (self._centre + self._reach * np.sin(2 * np.pi * self._hz * t_s + self._phase)) * size_wh
        angles = np.linspace(0, 2 * np.pi, 24)
        unit = _SQUARE if self._box else np.column_stack([np.cos(angles), np.sin(angles)])
        pixels = np.rint((centre + unit * self._half_xy) * 16).astype(np.int32)
        cv2.fillPoly(image_bgr, [pixels], tuple(map(float, self._colour)), cv2.LINE_AA, 4)


def _cover(image_bgr: NDArray[np.uint8], size_hw: tuple[int, int]) -> Image:
    """Scales an image to just cover a size, and cuts the middle out."""
    (height, width), (tall, wide) = size_hw, image_bgr.shape[:2]
    scale = max(height / tall, width / wide)
    wide, tall = max(round(wide * scale), width), max(round(tall * scale), height)
    scaled = cv2.resize(image_bgr, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (wide - width) // 2, (tall - height) // 2
    return np.ascontiguousarray(scaled[top:top + height, left:left + width])
