"""The networks that come with Sluice, one architecture a file."""
