"""What leaves the service: the sinks of its configuration, its health and metrics."""
