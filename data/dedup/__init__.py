"""What occurs twice: documents, lines, evaluation sets; and the held-out split."""
