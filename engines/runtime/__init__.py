"""Running models: the `Engine` seam, the engines behind it, the cache of built ones, and the proof that they agree
with eager. May import `model` and `networks`; knows no dataset and no training."""
