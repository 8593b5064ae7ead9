"""Where results go: JSON lines, an annotated video, the event log, the terminal."""
