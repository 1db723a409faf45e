"""The report of the corpus stage."""
