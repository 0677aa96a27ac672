"""PerCoV2 (arXiv 2503.09368): the shapes of `tiny` and `sd3-medium`."""
