"""PyTorch models, the training recipe, and the export of bundles, all that the runtime sees."""
