"""PerCo (SD) (arXiv 2409.20255): Stable Diffusion 2.1 conditioned on vector quantised tokens.

Its published checkpoints, folders in the layout of diffusers, become bundles: image -> tokens, one
step of the sampler, latent -> image and, with its text tower, caption -> condition.
"""
