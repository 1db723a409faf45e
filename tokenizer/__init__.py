"""Vocabulary stage: train, select, merge, prove and report a SentencePiece extension."""
