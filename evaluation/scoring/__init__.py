"""Bits per byte of held-out text, and samples."""
