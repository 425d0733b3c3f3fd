"""State machines as data: every status and every legal move."""
