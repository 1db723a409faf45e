"""Models as sums of models: the arithmetic, and folders merged tensor by tensor."""
