"""Configuration: what a section is, reading files, checking them, what decides a stage's key, registries of names."""
