"""From source files to documents: which files, which part of them, and what they hold."""
