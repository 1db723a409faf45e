"""Processes: what they are told, their signals, their process groups, Megatron without a GPU."""
