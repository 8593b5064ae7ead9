"""Many services on many machines (Ray), and which camera goes where. No service knows of it."""
