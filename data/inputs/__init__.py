"""From the paths of the configuration to documents: which files, which shards, and reading them in order."""
