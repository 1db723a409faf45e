"""The stages of an experiment by name, in the order in which they run. What a stage is stands in ``stage.py``."""

STAGE_NAMES = (
    "corpus", "base", "tokenizer", "tokens", "graft", "reference", "train", "export", "evaluate", "report",
)  # fmt: skip
OPTIONAL = ("base", "reference")
"""Stages that some experiments do not have: a base of one's own making, the reference of preference tuning."""
