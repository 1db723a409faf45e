"""Published benchmarks through lm-evaluation-harness."""
