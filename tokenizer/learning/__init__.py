"""Learning which pieces to add."""
