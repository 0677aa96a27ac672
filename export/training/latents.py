"""Latents of the training photographs, computed once the autoencoder is trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from percoedge.export.models.percov2.vae import TinyVae
from percoedge.export.models.precision import precision
from percoedge.export.training.data import Photos, image_tensor


class LatentPhotos:
    """Latents of all photos and of their mirror images, computed once, with aligned crops."""

    @torch.no_grad()
    def __init__(self, vae: TinyVae, photos: Photos, stride: int) -> None:
        device = next(vae.parameters()).device
        self.photos, self.stride = photos, stride
        self.latents: list[tuple[Tensor, Tensor]] = []
        for pixels in photos.images:
            height, width = (side // stride * stride for side in pixels.shape[:2])
            both = np.stack([pixels[:height, :width], pixels[:height, :width][:, ::-1]])
            with precision(device):
                latent = vae.encode(image_tensor(both).to(device))
            self.latents.append((latent[0].bfloat16(), latent[1].bfloat16()))

    def crops(self, rng: np.random.Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
        """Latent crops (batch,C,size/8,size/8) and their pixels (batch,3,size,size) in [-1,1]."""
        step, cells = self.stride, size // self.stride
        latents, pixels = [], np.empty((batch, size, size, 3), np.uint8)
        drawn = rng.choice(len(self.latents), batch, p=self.photos.weights)
        for slot, index in enumerate(drawn):
            mirrored = int(rng.random() < 0.5)
            latent = self.latents[index][mirrored]
            image = self.photos.images[index][:, : latent.shape[2] * step]
            if mirrored:
                image = image[:, ::-1]
            top = int(rng.integers(latent.shape[1] - cells + 1))
            left = int(rng.integers(latent.shape[2] - cells + 1))
            latents.append(latent[:, top : top + cells, left : left + cells])
            pixels[slot] = image[top * step :, left * step :][:size, :size]
        device = latents[0].device
        return torch.stack(latents).float(), image_tensor(pixels).to(device)
