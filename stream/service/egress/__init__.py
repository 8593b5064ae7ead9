"""What leaves the service: the event outbox, MQTT, webhook, clips of events, the live feed, health."""
