"""Tokenizers, chat templates and hashes of text, shared by the stages."""
