"""Which samples a step reads: their order, what earlier runs have read, batches of a rank."""
