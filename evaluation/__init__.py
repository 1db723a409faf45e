"""Evaluation and report: was the graft worth it."""
