"""Two hands in each frame of a stream: found, tracked, and as numbers for lessons. The extra `[hands]`."""

from engines.hands.features import HAND_FEATURES, hand_features
from engines.hands.models import HandModels, models_installed, open_models
from engines.hands.tracker import Hands, HandTracker

__all__ = ["HAND_FEATURES", "HandModels", "HandTracker", "Hands", "hand_features",
           "models_installed", "open_models"]
