"""What the stages share: configuration, run directory, manifests, stage graph, tracking, errors."""
