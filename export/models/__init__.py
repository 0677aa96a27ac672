"""PyTorch modules of a model family."""
