"""The gates: what must hold of a merged tokenizer before anything is trained with it."""
