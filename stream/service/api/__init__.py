"""The HTTP and WebSocket API: health, events, cameras, live records, and who may have them."""
