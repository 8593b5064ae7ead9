"""Two hands of one frame as numbers that say what the hands do, rather than where they are seen."""

import numpy as np

from engines.hands.crop import MIDDLE_KNUCKLE, WRIST, Floats
from engines.hands.tracker import Hands

HOLD_FRAMES = 15  # that a lost hand's last shape stays
EACH = 1 + 2 + 21 * 2  # numbers of one hand
PAIR = 4  # numbers of both together
HAND_FEATURES = 2 * EACH + PAIR


def hand_features(hands: Hands, hold_frames: int = HOLD_FRAMES) -> Floats:
    """A frame's hands as float32 [HAND_FEATURES], the left slot's numbers, then the right one's, then both hands':

        0        presence, 0 to 1; 0 in every frame in which the hand is not seen
        1, 2     the wrist's x and y, as shares of the image's width and height
        3 to 44  x and y of each of the 21 landmarks from the wrist, over the palm's length (wrist to middle knuckle)

        90 to 93 x and y from the left wrist to the right one, and from middle knuckle to middle knuckle, over the mean
                 of the palms' lengths

    A hand that is lost keeps its last numbers, but for its presence, for so many frames; then, as before it was first
    seen, they are zeros. All but 0 to 2 and 45 to 47 are the same wherever in the image the hands are, and of whatever
    size. `feature_names` has a name for each."""
    rows, pair = np.zeros((2, EACH), np.float32), np.zeros(PAIR, np.float32)
    known = (hands.unseen >= 0) & (hands.unseen <= hold_frames)
    points = hands.landmarks[:, :, :2] * np.array([hands.aspect, 1], np.float32)
    palms = np.maximum(np.linalg.norm(points[:, MIDDLE_KNUCKLE] - points[:, WRIST], axis=1), 1e-6)
    for slot in np.flatnonzero(known):
        shape = (points[slot] - points[slot, WRIST]) / palms[slot]
        rows[slot] = np.concatenate([hands.presence[slot:slot + 1], hands.landmarks[slot, WRIST, :2], shape.ravel()])
    if known.all():
        pair = (points[1] - points[0])[[WRIST, MIDDLE_KNUCKLE]].ravel() / palms.mean()
    return np.concatenate([rows.ravel(), pair])


def feature_names() -> tuple[str, ...]:
    """Names of the HAND_FEATURES numbers, such as right.x9."""
    one = ("presence", "wrist_x", "wrist_y", *(f"{axis}{point}" for point in range(21) for axis in "xy"))
    both = tuple(f"both.{axis}{point}" for point in (WRIST, MIDDLE_KNUCKLE) for axis in "xy")
    return tuple(f"{side}.{name}" for side in ("left", "right") for name in one) + both
