"""From shards to token ids, and the mixture planned in tokens."""
