"""How many cameras fit, and what hours of them do: load and soak. Nothing in the service imports it."""
