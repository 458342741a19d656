"""Faust agents: thin adapters between topics and the parts that do the work."""
