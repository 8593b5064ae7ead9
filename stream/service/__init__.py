"""Many cameras in one service: `ingress` takes their frames, `worker` runs the engine, `egress` gives results out,
`cluster` spreads cameras over machines. May import every other room of `stream` but `commands`."""
