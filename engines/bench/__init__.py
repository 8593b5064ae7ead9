"""Measuring: stages and overhead of a step, whether training waits for its data, and `doctor`, the proof that
stream = clip = engine on this machine. May import every other room of `engines`."""
