"""Pages of the report and of comparisons."""
