"""Model stages: scratch base, graft, Megatron continued pretraining, conversion, export."""
