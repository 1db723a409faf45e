"""Hugging Face weights to Megatron checkpoints and back."""
