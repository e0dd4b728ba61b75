"""The autoencoder: 64 x 64 pictures to 16 x 16 latents of four channels, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from expunge import seeds
from expunge.hardware import autocast
from expunge.iconworld.build.loop import Weights, cosine
from expunge.iconworld.build.stock import Source
from expunge.iconworld.build.styles import CELL


@dataclass(frozen=True)
class Settings:
    """How the autoencoder is built and trained.

    Attributes:
        widths: channels at 64, 32 and 16 pixels.
        crop: it is convolutional throughout, so it learns from crops of this side, cut along cells.
        slope: weight of the error of neighbouring pixels' differences, which keeps lines sharp.
        kl: weight of the divergence from a standard normal; next to nothing, latents are scaled afterwards.
    """

    steps: int = 9000
    batch: int = 16
    crop: int = 32
    rate: float = 2e-3
    widths: tuple[int, ...] = (24, 48, 64)
    slope: float = 0.5
    kl: float = 1e-6
    seed: int = 0


def build(widths: tuple[int, ...]) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


class Training:
    """A `loop.Trainee`."""

    name = "autoencoder"

    def __init__(self, settings: Settings, source: Source, device: torch.device) -> None:
        self.settings: Mapping[str, object] = asdict(settings)
        self.steps, self._s, self._source, self._device = settings.steps, settings, source, device
        with torch.random.fork_rng():
            torch.manual_seed(seeds.derive(settings.seed, self.name, "weights"))
            network = build(settings.widths)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.weights = Weights({"vae": self.network}, decay=0.999, weight_decay=0.0)
        self.tensors, self.restore = self.weights.tensors, self.weights.restore

    def step(self, number: int) -> dict[str, float]:
        s, lots = self._s, seeds.generator(self._s.seed, self.name, number)
        pictures, _ = self._source.batch(s.batch, s.seed, number)
        top, left = (torch.randint((64 - s.crop) // CELL + 1, (2,), generator=lots) * CELL).tolist()
        x = pictures[:, :, top : top + s.crop, left : left + s.crop].to(self._device, memory_format=torch.channels_last)
        with autocast(self._device, "auto"):
            posterior = self.network.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=lots).to(x)
            restored = self.network.decode(posterior.mean + posterior.std * noise).sample.float()
        absolute, squared = F.l1_loss(restored, x), F.mse_loss(restored, x)
        slope = sum(F.l1_loss(restored.diff(dim=side), x.diff(dim=side)) for side in (2, 3))
        loss = absolute + squared + s.slope * slope + s.kl * posterior.kl().float().mean()
        norm = self.weights.update(loss, number, cosine(number, s.steps, s.rate, warmup=100))
        return {"loss": loss.item(), "l1": absolute.item(), "gradient": norm}

    def save(self, folder: Path) -> None:
        """Write the averaged network as fp16, with the scaling that gives its latents unit variance."""
        with self.weights.averaged(), torch.no_grad():
            pictures = torch.cat([self._source.batch(64, 1, i)[0] for i in range(8)]).to(self._device)
            latents = encode(self.network, pictures)
            self.network.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
            copy = build(self._s.widths)
            copy.load_state_dict(self.network.state_dict())
            copy.register_to_config(scaling_factor=self.network.config.scaling_factor)
            copy.to(torch.float16).save_pretrained(folder)


@torch.no_grad()
def encode(network: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """Pictures in [-1, 1] -> unscaled latent means `(b 4 16 16)`."""
    parts = pictures.to(memory_format=torch.channels_last).split(batch)
    return torch.cat([network.encode(part).latent_dist.mean for part in parts])


@torch.no_grad()
def decode(network: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Unscaled latents -> pictures `(b 3 64 64)` in [-1, 1]."""
    parts = latents.to(memory_format=torch.channels_last).split(batch)
    return torch.cat([network.decode(part).sample for part in parts]).clamp(-1, 1)
