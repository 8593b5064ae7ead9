"""The process that holds the engine, the protocol it speaks with the receiver, and the promotion of a new model."""
