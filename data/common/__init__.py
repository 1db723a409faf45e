"""What the passes share: shard files, byte streams, character encodings, counts, executors."""
