"""What the hand looks like: skin, light, sleeve, posture. Sprites are made once and turned into place per frame.
Hand coordinates: the index fingertip is (0, 0), x right, y down, and 1 is the length from fingertip to wrist."""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.synthetic.backgrounds import smooth_noise

Posture = Literal["pointing", "open", "fist"]
POSTURES: tuple[Posture, ...] = ("pointing", "open", "fist")
Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom of a sprite
Bone = tuple[float, float, float, float, float, float]  # x0, y0, radius0, x1, y1, radius1

HAND_HEIGHT = 0.42  # fingertip to wrist as a fraction of frame height, at scale 1
_WRIST = (0.17, 1.0)
_WRIST_RADIUS = 0.135
_HAND_BOX = (-0.28, -0.14, 0.62, 1.22)
_ARM_BOX = (-0.46, -0.16, 0.46, 3.0)
_MOST_BEND = 0.9  # of the wrist, radians
_SKINS_BGR = np.array([[38, 52, 84], [58, 84, 132], [86, 122, 178], [120, 158, 212], [158, 186, 232], [186, 204, 240]],
                      np.float64)
_BACK: tuple[Bone, ...] = (  # the back of the hand, and the wrist
    (0.17, 1.04, _WRIST_RADIUS, 0.16, 0.80, 0.14), (0.12, 0.84, 0.125, 0.07, 0.52, 0.09),
    (0.17, 0.84, 0.13, 0.15, 0.50, 0.09), (0.22, 0.83, 0.12, 0.25, 0.53, 0.085), (0.25, 0.83, 0.11, 0.34, 0.59, 0.075))


class Look:
    """One person's hand in one light, as cameras show them, from silhouettes to over-exposed; clear: a right one, its
    finger up, in good light. Lengths are in hand lengths, angles in radians, colours BGR 0..255."""

    def __init__(self, rng: np.random.Generator, clear: bool = False) -> None:
        tone = rng.uniform(0, len(_SKINS_BGR) - 1.001)
        low = int(tone)
        skin = _SKINS_BGR[low] + (tone - low) * (_SKINS_BGR[low + 1] - _SKINS_BGR[low])
        exposure = float(rng.choice([rng.uniform(0.75, 1.15), rng.uniform(0.2, 0.6), rng.uniform(1.15, 1.7)],
                                    p=[0.65, 0.2, 0.15]))
        cast = np.exp(0.1 * rng.standard_normal(3))
        if clear:
            exposure, cast = rng.uniform(0.75, 1.15), cast ** 0.3
        cloth = rng.uniform(15, 235, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(15, 235))
        light_x = rng.uniform(-1, 1)
        self.skin_bgr = np.clip(skin * exposure * cast, 6, 255)
        self.sleeve_bgr = cloth * min(exposure, 1.1)
        self.pattern_bgr = rng.uniform(10, 245, 3) * min(exposure, 1.1)
        self.band_bgr = rng.uniform(5, 230, 3) * exposure
        self.pattern = str(rng.choice(["plain", "stripes", "checks"], p=[0.6, 0.2, 0.2]))
        # Width of a bracelet, 0 for none; length of forearm before the sleeve.
        self.band = float(rng.choice([0.0, rng.uniform(0.03, 0.06), rng.uniform(0.08, 0.16)], p=[0.65, 0.2, 0.15]))
        self.bare = float(rng.choice([9.0, rng.uniform(0.12, 1.4)], p=[0.5, 0.5]))
        self.scale = float(np.exp(rng.uniform(np.log(0.75), np.log(1.5))))  # of the hand; 1 is HAND_HEIGHT of the frame
        self.tilt = rng.normal(-0.22, 0.08 if clear else 0.2)  # lean of the finger, clockwise
        self.thickness = rng.uniform(0.85, 1.25)  # of the fingers
        self.girth = rng.uniform(0.06, 0.3)  # how much the forearm widens towards the elbow
        self.thumb = rng.uniform(0, 1)  # 0 tucked to 1 along the finger
        self.mirrored = rng.random() < 0.06 and not clear  # a left hand, from the bottom left
        self.elbow_xy = rng.normal(0.95, 0.16), rng.uniform(1.2, 1.7)  # where the forearm comes from, of the frame
        self.swing = rng.uniform(0.2, 0.7)  # how far the elbow follows the hand
        self.light_xyz = light_x, rng.uniform(-1.0, 0.15), rng.uniform(0.35, 1.1)  # direction of the light
        self.ambient = rng.uniform(0.3, 0.8)  # share of light from everywhere
        self.shutter_s = rng.uniform(0.002, 0.03)  # time over which motion blurs
        self.grain = int(rng.integers(2 ** 31))  # seed of skin and cloth


class Hand:
    """Draws one look at one frame size."""

    def __init__(self, look: Look, size_hw: tuple[int, int]) -> None:
        self.look, self.size_hw = look, size_hw
        self._length = HAND_HEIGHT * look.scale * size_hw[0]  # pixels
        # Small sprites are drawn finer than they are shown, so that a thin finger keeps its width.
        self._oversampling = float(np.clip(60.0 / self._length, 1.0, 3.0))
        self._unit = self._length * self._oversampling
        self._arm = _arm_sprite(look, self._unit)
        self._hands: dict[Posture, Image] = {}

    def draw(self, image_bgr: Image, tip_xy: Sequence[float], posture: Posture = "pointing", angle: float = 0.0,
             velocity_xy: Sequence[float] = (0.0, 0.0)) -> None:
        """Draws into `image_bgr`. tip_xy, velocity_xy: fractions of the frame; angle: radians, clockwise."""
        look, (height, width) = self.look, self.size_hw
        sign = -1.0 if look.mirrored else 1.0
        tip = np.array([tip_xy[0] * width, tip_xy[1] * height])
        across = tip_xy[0] - 0.5
        turn = sign * look.tilt + angle + 0.25 * across
        wrist = tip + self._length * _rotate((sign * _WRIST[0], _WRIST[1]), turn)
        elbow_x = look.elbow_xy[0] if sign > 0 else 1 - look.elbow_xy[0]
        elbow_y = max(look.elbow_xy[1] * height, wrist[1] + 0.5 * self._length)
        way_x, way_y = np.array([(elbow_x + look.swing * across) * width, elbow_y]) - wrist
        arm_turn = float(np.clip(np.arctan2(-way_x, way_y), turn - _MOST_BEND, turn + _MOST_BEND))
        blur = (int(abs(velocity_xy[0]) * width * look.shutter_s), int(abs(velocity_xy[1]) * height * look.shutter_s))
        if posture not in self._hands:  # many a scene shows one posture only
            self._hands[posture] = _hand_sprite(look, posture, self._unit)
        for sprite, box, sprite_turn, at in ((self._arm, _ARM_BOX, arm_turn, wrist),
                                             (self._hands[posture], _HAND_BOX, turn, tip)):
            to_frame = _sprite_to_frame(sprite_turn, 1 / self._oversampling, sign, box, self._unit, at)
            _composite(image_bgr, sprite, to_frame, blur)


def _bones(look: Look, posture: Posture) -> list[Bone]:
    k = look.thickness
    curled: list[Bone] = [(0.175, 0.455, 0.075 * k, 0.13, 0.56, 0.07 * k),
                          (0.265, 0.50, 0.072 * k, 0.20, 0.60, 0.065 * k),
                          (0.345, 0.565, 0.062 * k, 0.28, 0.65, 0.06 * k)]
    tucked: list[Bone] = [(0.06, 0.80, 0.085, -0.04, 0.62, 0.065 * k),
                          (-0.04, 0.62, 0.06 * k, 0.06 - 0.14 * look.thumb, 0.49 - 0.02 * look.thumb, 0.05 * k)]
    if posture == "pointing":
        return [*_BACK, *curled, *tucked, (0.0, 0.048, 0.046 * k, 0.015, 0.20, 0.056 * k),
                (0.015, 0.20, 0.056 * k, 0.055, 0.47, 0.074 * k)]
    if posture == "fist":
        return [*_BACK, *curled, *tucked, (0.07, 0.47, 0.075 * k, 0.05, 0.56, 0.065 * k)]
    spread = [(x0, y0, 0.064 * k * thick, x1, y1, 0.043 * k * thick) for x0, y0, x1, y1, thick in (
        (0.06, 0.5, 0.0, 0.045, 1.0), (0.15, 0.48, 0.16, -0.03, 1.05),
        (0.24, 0.51, 0.31, 0.03, 1.0), (0.31, 0.58, 0.45, 0.19, 0.85))]
    return [*_BACK, *spread, (0.06, 0.80, 0.085, -0.08, 0.62, 0.06 * k),  # and the thumb
            (-0.08, 0.62, 0.058 * k, -0.17, 0.45, 0.045 * k)]


def _grid(box: Box, unit: float) -> tuple[Floats, ...]:
    left, top, right, bottom = box
    return np.meshgrid(*(np.arange(*ends, 1 / unit, dtype=np.float32) for ends in ((left, right), (top, bottom))))


def _hand_sprite(look: Look, posture: Posture, unit: float) -> Image:
    """Premultiplied BGRA sprite: the hand as a union of tapered rods, lit as a relief."""
    x, y = _grid(_HAND_BOX, unit)
    relief, cover = np.zeros_like(x), np.zeros_like(x)
    for x0, y0, r0, x1, y1, r1 in _bones(look, posture):
        dx, dy = x1 - x0, y1 - y0
        u = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        radius = r0 + u * (r1 - r0)
        away = np.hypot(x - x0 - u * dx, y - y0 - u * dy)
        relief = np.maximum(relief, np.sqrt(np.maximum(radius * radius - away * away, 0)))
        cover = np.maximum(cover, np.clip((radius - away) * unit + 0.5, 0, 1))
    shade = _shade(relief, look, unit, look.tilt)
    tint = _tint(look.skin_bgr, shade, look.grain, unit)
    if posture == "pointing":  # the nail
        nail = np.exp(-((x + 0.002) / (0.022 * look.thickness)) ** 4 - ((y - 0.045) / 0.03) ** 4)[..., None]
        pale = (np.array(look.skin_bgr, np.float32) * 0.85 + 30) * shade[..., None]
        tint = tint + 0.5 * nail * (pale - tint)
    cover = cover * np.clip((1.13 - y) / 0.12, 0, 1)  # melts into the forearm
    return _premultiply(tint, cover)


def _arm_sprite(look: Look, unit: float) -> Image:
    """Premultiplied BGRA sprite of wrist, forearm, band and sleeve, running down from (0, 0)."""
    x, y = _grid(_ARM_BOX, unit)
    half = _WRIST_RADIUS + look.girth * np.clip(y / 1.3, 0, 1) ** 1.1
    half = np.where(y < 0, np.sqrt(np.maximum(_WRIST_RADIUS ** 2 - y * y, 1e-6)), half).astype(np.float32)
    sleeved = y > look.bare + 0.03 * np.cos(x * 8)
    folds = smooth_noise(np.random.default_rng(look.grain), (24, 5), x.shape)
    half = half * np.where(sleeved, 1.16 + 0.03 * folds, 1.0).astype(np.float32)
    banded = (np.abs(y - 0.12) < look.band / 2) & ~sleeved
    half = half * np.where(banded, 1.05, 1.0).astype(np.float32)
    relief = np.sqrt(np.maximum(half * half - x * x, 0)) + np.where(sleeved, 0.02 * folds, 0.0).astype(np.float32)
    shade = _shade(relief, look, unit, -0.6)
    tint = _tint(look.skin_bgr, shade, look.grain + 1, unit)
    cloth = np.broadcast_to(np.array(look.sleeve_bgr, np.float32), tint.shape).copy()
    if look.pattern != "plain":
        lines = np.sin(y * 60) > 0.3
        if look.pattern == "checks":
            lines = lines ^ (np.sin(x * 70) > 0.3)
        cloth[lines] = look.pattern_bgr
    tint = np.where(sleeved[..., None], cloth * shade[..., None], tint)
    tint = np.where(banded[..., None], np.array(look.band_bgr, np.float32) * shade[..., None], tint)
    return _premultiply(tint, np.clip((half - np.abs(x)) * unit + 0.5, 0, 1))


def _shade(relief: Floats, look: Look, unit: float, turn: float) -> Floats:
    """Brightness of a relief (heights in hand lengths) under the look's light, in a sprite turned by `turn`."""
    soft = cv2.GaussianBlur(relief, (0, 0), max(0.014 * unit, 0.6)) * unit
    slope_x, slope_y = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=1 / 8)
    light_x, light_y = _rotate(look.light_xyz[:2], -turn)
    light = np.array([-light_x, -light_y, look.light_xyz[2]])
    light /= np.linalg.norm(light)
    # Light comes from -slope: a surface that rises away from the lamp faces it.
    facing = (slope_x * light[0] + slope_y * light[1] + light[2]) / np.sqrt(1 + slope_x ** 2 + slope_y ** 2)
    hollow = (soft / unit - cv2.GaussianBlur(relief, (0, 0), max(0.05 * unit, 1.0))) / 0.05
    shade = (look.ambient + (1 - look.ambient) * np.maximum(facing, 0) * 1.25) * np.clip(1 + 0.22 * hollow, 0.45, 1.2)
    return np.asarray(shade, np.float32)


def _tint(colour_bgr: Sequence[float], shade: Floats, grain: int, unit: float) -> Floats:
    """Skin: blotches, and darker parts that are redder."""
    height, width = shade.shape
    rng = np.random.default_rng(grain)
    blotches = smooth_noise(rng, (9, 7), shade.shape)
    fine = cv2.resize(rng.standard_normal((height // 3 + 2, width // 3 + 2)).astype(np.float32), (width, height))
    level = shade * (1 + 0.035 * blotches + 0.025 * fine)
    power = np.array([1.18, 1.08, 0.92], np.float32)
    return np.asarray(np.array(colour_bgr, np.float32) * np.maximum(level, 0.02)[..., None] ** power, np.float32)


def _premultiply(colour_bgr: Floats, cover: Floats) -> Image:
    cover = np.asarray(cover, np.float32)[..., None]
    sprite = np.concatenate([np.clip(colour_bgr, 0, 255) * cover, 255 * cover], axis=2)
    return np.asarray(np.rint(sprite), np.uint8)


def _sprite_to_frame(turn: float, scale: float, sign: float, box: Box, unit: float,
                     to_xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sprite pixels -> frame pixels: mirror, shrink, turn, and bring the sprite's (0, 0) to `to_xy`."""
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    matrix = np.array([[sign * cos, -sin], [sign * sin, cos]])
    return np.column_stack([matrix, to_xy + matrix @ (np.array(box[:2]) * unit)])


def _composite(image_bgr: Image, sprite: Image, affine: NDArray[np.float64], blur: tuple[int, int]) -> None:
    """Lays a premultiplied sprite over the part of the image that it touches."""
    height, width = image_bgr.shape[:2]
    tall, wide = sprite.shape[:2]
    corners = affine @ np.array([[0, wide, wide, 0], [0, 0, tall, tall], [1, 1, 1, 1]])
    left, top = np.maximum((np.floor(corners.min(axis=1)) - blur).astype(int), 0)
    right, bottom = np.minimum((np.ceil(corners.max(axis=1)) + blur + 1).astype(int), (width, height))
    if left >= right or top >= bottom:
        return
    placed = affine.copy()
    placed[:, 2] -= (left, top)
    layer = cv2.warpAffine(sprite, placed, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    if max(blur) > 0:
        layer = cv2.blur(layer, (blur[0] + 1, blur[1] + 1), borderType=cv2.BORDER_REPLICATE)
    region = image_bgr[top:bottom, left:right]
    through = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(layer, 3)), cv2.COLOR_GRAY2BGR)
    cv2.multiply(region, through, dst=through, scale=1 / 255)
    region[:] = cv2.add(through, cv2.cvtColor(layer, cv2.COLOR_BGRA2BGR))


def _rotate(xy: Sequence[float], turn: float) -> NDArray[np.float64]:
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([cos * xy[0] - sin * xy[1], sin * xy[0] + cos * xy[1]])
