"""File formats of weights, by byte range."""
