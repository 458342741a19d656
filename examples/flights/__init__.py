"""Real flights: will this one be late? Training, feature loading, replay and proof."""
