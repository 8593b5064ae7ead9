"""A model outside of any engine: its contract, its file, official checkpoints, and the way from a camera image to
network input. Reading a file imports no torch. May import `networks`."""
