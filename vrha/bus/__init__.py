"""AMQP: topology, client, and the private broker."""
