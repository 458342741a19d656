"""Benchmarks of the service, and of its peers on the same work."""
