"""Which documents are kept: quality profiles, language identification and the rules they name."""
