"""Many cameras in one service. From the ground up, imports go down only: `config`; `worker` (the process
with the engine); `ingress` (sockets, admission, scheduler, camera processes), which speaks the worker's protocol;
`egress` (its sinks, health), which knows neither; `service`. May import every room of `stream` below it; `bench`,
`cluster` and `commands` stand above."""
