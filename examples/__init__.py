"""Examples that run on the real service."""
