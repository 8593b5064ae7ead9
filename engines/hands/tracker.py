"""Two hands followed through a stream: detected where one is missing, else found from where they were before."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.decoding.images import Image, as_bgr
from engines.hands.crop import MIDDLE_KNUCKLE, WRIST, Floats, square_of_landmarks, square_of_palm
from engines.hands.models import HandModels, Landmarks, open_models
from engines.hands.palms import POINTS

LEAST_PRESENCE = 0.3  # of 0.5 as published: blurred hands at work are hands
SAME_HAND = 0.3  # mean distance of two hands' points over the palm's length, below which they are one hand
DETECT_EVERY = 2  # frames from one search to the next while fewer than two hands are followed
RECENT_FRAMES = 15  # a hand lost so long ago is the one that appears nearest to it
SIDES = "left", "right"  # names of the slots


@dataclass(frozen=True, slots=True)
class Hands:
    """Two hands in one frame: slot 0 is the one on the left, slot 1 the one on the right, as they were when the latest
    of them came into view. A hand keeps its slot until one of them is lost, whichever way they go.

    presence: [2], 0 to 1, 0 where there is none; right: [2], how sure it is a right hand, in a picture that is not
    mirrored; landmarks: [2, 21, 3], x and y as shares of the image's width and height, z as a share of its width,
    nearer is less; of a hand that is lost, where it was last seen; unseen: [2], frames since then, -1 for never;
    aspect: the image's width over its height."""

    presence: Floats = field(default_factory=lambda: np.zeros(2, np.float32))
    right: Floats = field(default_factory=lambda: np.full(2, 0.5, np.float32))
    landmarks: Floats = field(default_factory=lambda: np.zeros((2, 21, 3), np.float32))
    unseen: NDArray[np.int64] = field(default_factory=lambda: np.full(2, -1))
    aspect: float = 1.0

    def in_view(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Of the hands that are seen in this frame: the slot's name, and x and y of the 21 landmarks."""
        return {SIDES[slot]: tuple((float(x), float(y)) for x, y, _ in self.landmarks[slot])
                for slot in np.flatnonzero(self.presence)}


class HandTracker:
    """One camera's hands.

        tracker = HandTracker()
        hands = tracker.step(image_bgr)

    Causal; `reset` makes it as new, `copy` goes on from the same state. Trackers share the compiled models."""

    def __init__(self, models: HandModels | None = None, detect_every: int = DETECT_EVERY) -> None:
        """detect_every: frames from one search to the next while fewer than two hands are followed: that costs most.
        Raises UsageError where the models are not installed."""
        self.models, self.detect_every = models or open_models(), detect_every
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next frame is the first."""
        self._hands, self._waited = Hands(), self.detect_every

    def copy(self) -> "HandTracker":
        """A tracker that goes on from here by itself."""
        other = HandTracker(self.models, self.detect_every)
        other._hands, other._waited = self._hands, self._waited
        return other

    def step(self, image_bgr: Image) -> Hands:
        """The hands in the next frame, uint8 [H, W, 3]. Raises FrameError for what is no image, EngineError."""
        image = as_bgr(image_bgr)
        before, scale = self._hands, np.array([image.shape[1], image.shape[0], image.shape[1]], np.float32)
        followed: dict[int, Landmarks] = {}
        for slot in np.flatnonzero(before.presence):
            square = square_of_landmarks((before.landmarks[slot] * scale)[:, :2])
            hand = self.models.landmarks(image, square)
            if _is_hand(hand):
                followed[int(slot)] = hand
        if len(followed) == 2 and _distance(followed[0].points, followed[1].points) < SAME_HAND:
            del followed[min(followed, key=lambda slot: followed[slot].presence)]
        self._waited += 1
        if len(followed) < 2 and self._waited >= self.detect_every:
            self._waited = 0
            followed = assign_slots(self._search(image, list(followed.values())), followed, before, scale)
        self._hands = _hands_of(followed, before, scale)
        return self._hands

    def _search(self, image: Image, known: list[Landmarks]) -> list[Landmarks]:
        """Hands that are not known yet, as many as there is room for."""
        found: list[Landmarks] = []
        where, palms = self.models.detect(image)
        for palm in palms[:2 + len(known)]:
            if len(known) + len(found) == 2:
                break
            points = where.to_image(np.concatenate([palm.points, palm.box_xyxy.reshape(2, 2)]), 192)
            if any(_distance(hand.points[list(POINTS)], points[:7], hand.points) < SAME_HAND for hand in known + found):
                continue
            hand = self.models.landmarks(image, square_of_palm(points[7:].ravel(), points[0], points[2]))
            if _is_hand(hand) and all(_distance(hand.points, other.points) >= SAME_HAND for other in known + found):
                found.append(hand)
        return found


def assign_slots(found: list[Landmarks], followed: dict[int, Landmarks], before: Hands,
                 scale: Floats) -> dict[int, Landmarks]:
    """Slots for the hands that are followed and those that come into view: two are put in order from left to right; one
    alone takes the slot of the hand that was lost near it a moment ago, else that of its half of the image.
    scale: [3], width, height, width of the image."""
    hands = [*followed.values(), *found]
    if not found:
        return followed
    if len(hands) == 2:
        return dict(enumerate(sorted(hands, key=lambda hand: float(hand.points[MIDDLE_KNUCKLE, 0]))))
    hand = hands[0]
    across = float(hand.points[MIDDLE_KNUCKLE, 0] / scale[0])

    def cost(slot: int) -> float:
        far = 0.5
        if 0 <= before.unseen[slot] < RECENT_FRAMES:
            far = min(1.0, _distance(hand.points, before.landmarks[slot] * scale, hand.points) / 2)
        return far + abs(across - slot)

    return {min((0, 1), key=cost): hand}


def _hands_of(followed: dict[int, Landmarks], before: Hands, scale: Floats) -> Hands:
    landmarks, unseen = before.landmarks.copy(), np.where(before.unseen < 0, -1, before.unseen + 1)
    presence, right = np.zeros(2, np.float32), before.right.copy()
    for slot, hand in followed.items():
        landmarks[slot], presence[slot], unseen[slot] = hand.points / scale, hand.presence, 0
        right[slot] = hand.right
    return Hands(presence, right, landmarks, unseen, float(scale[0] / scale[1]))


def _is_hand(hand: Landmarks) -> bool:
    return hand.presence >= LEAST_PRESENCE and bool(np.isfinite(hand.points).all()) and _palm_length(hand.points) > 1


def _palm_length(points: Floats) -> float:
    return float(np.linalg.norm(points[MIDDLE_KNUCKLE, :2] - points[WRIST, :2]))


def _distance(points: Floats, others: Floats, hand: Floats | None = None) -> float:
    """Mean distance of points from others in the image, over the palm's length of the hand they belong to."""
    apart = np.linalg.norm(points[:, :2] - others[:, :2], axis=1).mean()
    return float(apart / max(_palm_length(points if hand is None else hand), 1e-6))
