"""What ZeroMQ cameras send: messages, read and written, and those that were received and are not yet decoded."""
