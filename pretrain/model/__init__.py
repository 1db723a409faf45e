"""The model: Megatron's GPTModel with the layers, loss and kernels of this project."""
