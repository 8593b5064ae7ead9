"""Learning: the loop, recipes, tasks, and few-shot teaching. May import every room below: `datasets`, `runtime`,
`model`, `networks`, `synthetic`. Knows no camera and no evaluation of streams."""
