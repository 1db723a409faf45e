"""Artefacts by which stages meet, as readers and writers of their files."""
