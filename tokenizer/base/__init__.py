"""The base tokenizer, merging pieces into it, and the text a vocabulary is learned from."""
