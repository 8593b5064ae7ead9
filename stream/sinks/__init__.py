"""Where results go: one seam for all; the event log, and the outbox that delivers what is in it; JSON lines, videos,
brokers, the terminal, whoever watches live."""
