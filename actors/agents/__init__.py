"""The agents that come with Tutti: one capability each, heavy imports inside."""
