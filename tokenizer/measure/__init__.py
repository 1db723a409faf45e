"""How well a tokenizer fits a text."""
