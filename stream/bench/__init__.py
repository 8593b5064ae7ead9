"""How many cameras a service serves, and what hours do to memory: load and soak, measured from outside."""
