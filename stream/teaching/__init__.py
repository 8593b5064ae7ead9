"""Few-shot teaching from recordings, through the path that live use takes. May import sources and the recogniser."""
