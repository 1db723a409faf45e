"""Corpus and tokens stages: web text in, clean deduplicated Megatron datasets out."""
