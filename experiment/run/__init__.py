"""A run directory: its stages, what is complete, what has to run, running it, verifying it."""
