"""CoD-Lite (arXiv 2604.12525): one step, pixel space, no base model, fixed-length tokens.

Its published checkpoints become bundles of two graphs: image -> tokens and tokens -> image.
"""
