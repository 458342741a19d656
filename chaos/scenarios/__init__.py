"""The scenarios, by what is harmed."""
