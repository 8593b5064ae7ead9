"""Many cameras in one service. From the ground up, imports go down only: `config` and `frames`; `worker` (the process
with the engine); `ingress` (sockets, admission, scheduler, camera processes), which speaks the worker's protocol;
`egress` (results, videos, health), which knows neither; `service`; `cluster` (many machines); `bench`. May import every
other room of `stream` but `commands`. No other room imports this one but `commands`."""
