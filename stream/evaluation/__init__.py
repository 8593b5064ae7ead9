"""How good a model is, measured through the path that live use takes. May import the spine and sources."""
