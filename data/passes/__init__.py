"""The passes of the corpus stage over its shards."""
