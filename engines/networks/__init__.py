"""Networks: one temporal module a file, one backbone a file, put together in network.py."""
