"""What is known of a model from its config.json: families, sizes, FLOPs."""
