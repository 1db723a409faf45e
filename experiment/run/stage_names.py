"""The stages of an experiment by name, in the order in which they run. What a stage is stands in ``stage.py``."""

STAGE_NAMES = ("corpus", "base", "tokenizer", "tokens", "graft", "train", "export", "evaluate", "report")
