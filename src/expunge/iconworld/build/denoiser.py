"""The denoiser and its text encoder, trained together on latents and captions; and the pipeline that they end in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from expunge import files, seeds
from expunge.hardware import autocast, trained_attention
from expunge.iconworld.build import captions, tokenizer
from expunge.iconworld.build.autoencoder import encode
from expunge.iconworld.build.loop import Weights, cosine
from expunge.iconworld.build.stock import Labels, Source, Stock, to_unit

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
"""Stable Diffusion's."""
SHARD = "15MB"


@dataclass(frozen=True)
class Settings:
    """How the denoiser is built and trained.

    Attributes:
        widths: channels at 16, 8 and 4 latents; cross-attention where there are 8 and 4.
        text_width, text_layers: of the text encoder.
        prediction: what the network predicts.
        snr: signal-to-noise ratio above which steps are weighted down (min-SNR).
        dropout: share of captions that are left empty, for guidance.
        decay: of the moving average of the weights.
    """

    steps: int = 11_000
    batch: int = 48
    rate: float = 8e-4
    widths: tuple[int, ...] = (64, 128, 192)
    text_width: int = 128
    text_layers: int = 3
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    snr: float = 5.0
    dropout: float = 0.1
    decay: float = 0.999
    seed: int = 0


def build_unet(settings: Settings) -> Any:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=settings.widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=settings.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(settings: Settings, words: Any) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.LENGTH,
            projection_dim=settings.text_width,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


class Latents:
    """Scaled latents of pictures and what these show: all of a stock, encoded once, or freshly drawn ones."""

    def __init__(self, source: Source, vae: Any, cache: Path) -> None:
        self._source, self._vae = source, vae
        self._stock = _encoded(source, vae, cache) if isinstance(source, Stock) else None

    def batch(self, count: int, seed: int, number: int) -> tuple[Tensor, Labels]:
        """Latents `(b 4 16 16)`; drawn by lot from (seed, number)."""
        if isinstance(self._source, Stock) and self._stock is not None:
            rows = self._source.rows(count, seed, number)
            return self._stock[rows].float(), self._source.labels[rows]
        pictures, shown = self._source.batch(count, seed, number)
        return encode(self._vae, pictures) * self._vae.config.scaling_factor, shown


def _encoded(stock: Stock, vae: Any, cache: Path) -> Tensor:
    """Latents of a whole stock, in fp16, kept in `cache` with the digest of what made them."""
    state = files.canonical_json(
        [len(stock.pictures), round(sum(p.detach().double().sum().item() for p in vae.parameters()), 9)]
    )
    if cache.exists():
        stored = files.load_tensors(cache)
        if bytes(stored["made_by"].tolist()).decode() == state:
            return stored["latents"]
    parts = []
    for number, chunk in enumerate(stock.pictures.split(1024)):
        parts.append((encode(vae, to_unit(chunk)) * vae.config.scaling_factor).half())
        print(f"latents {number * 1024 + len(chunk)}/{len(stock.pictures)}", flush=True)
    latents = torch.cat(parts)
    files.save_tensors(cache, {"latents": latents, "made_by": torch.tensor(list(state.encode()), dtype=torch.uint8)})
    return latents


class Training:
    """A `loop.Trainee`.

    Args:
        folder: where the tokenizer and the autoencoder are.
    """

    name = "denoiser"

    def __init__(self, settings: Settings, source: Source, folder: Path, device: torch.device) -> None:
        self.settings: Mapping[str, object] = asdict(settings)
        self.steps, self._s, self._device = settings.steps, settings, device
        self.tokenizer = tokenizer.load(folder / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device).eval()
        self._latents = Latents(source, self.vae, folder / "latents.safetensors")
        with torch.random.fork_rng():
            torch.manual_seed(seeds.derive(settings.seed, self.name, "weights"))
            self.unet = build_unet(settings).to(device, memory_format=torch.channels_last)
            self.text_encoder = build_text_encoder(settings, self.tokenizer).to(device)
        networks = {"unet": self.unet, "text_encoder": self.text_encoder}
        self.weights = Weights(networks, decay=settings.decay, weight_decay=1e-3)
        self.tensors, self.restore = self.weights.tensors, self.weights.restore
        self._scheduler = DDPMScheduler(**SCHEDULE, prediction_type=settings.prediction)
        kept = self._scheduler.alphas_cumprod
        ratio = kept / (1 - kept)
        noise = ratio if settings.prediction == "epsilon" else ratio + 1
        self._weight = (ratio.clamp(max=settings.snr) / noise).to(device)

    def step(self, number: int) -> dict[str, float]:
        s, lots = self._s, seeds.generator(self._s.seed, self.name, number)
        latents, shown = self._latents.batch(s.batch, s.seed, number)
        latents = latents.to(self._device)
        texts = captions.captions(shown, random.Random(seeds.derive(s.seed, self.name, "captions", number)))
        empty = (torch.rand(s.batch, generator=lots) < s.dropout).tolist()
        tokens = self.tokens(["" if e else text for e, text in zip(empty, texts, strict=True)])
        t = torch.randint(1000, (s.batch,), generator=lots).to(self._device)
        noise = torch.randn(latents.shape, generator=lots).to(self._device)
        noisy = self._scheduler.add_noise(latents, noise, t).to(memory_format=torch.channels_last)
        wanted = noise if s.prediction == "epsilon" else self._scheduler.get_velocity(latents, noise, t)
        with trained_attention(self.unet, latents[0, 0].numel()):
            with autocast(self._device, "auto"):
                predicted = self.unet(noisy, t, self.text_encoder(tokens).last_hidden_state).sample
            error = F.mse_loss(predicted.float(), wanted, reduction="none").mean((1, 2, 3))
            loss = (error * self._weight[t]).mean()
            norm = self.weights.update(loss, number, cosine(number, s.steps, s.rate, warmup=200))
        return {"loss": loss.item(), "error": error.mean().item(), "gradient": norm}

    def tokens(self, texts: list[str]) -> Tensor:
        """Token numbers `(b 24)`."""
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids.to(self._device)

    def save(self, folder: Path) -> None:
        """Write the averaged networks as a StableDiffusionPipeline in fp16."""
        with self.weights.averaged():
            unet, text_encoder = build_unet(self._s), build_text_encoder(self._s, self.tokenizer)
            unet.load_state_dict(self.unet.state_dict())
            text_encoder.load_state_dict(self.text_encoder.state_dict())
        vae = AutoencoderKL.from_config(self.vae.config)
        vae.load_state_dict(self.vae.state_dict())
        vae.register_to_config(_name_or_path="")  # or the model's digest would depend on the folder it was made in
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(
                **SCHEDULE, prediction_type=self._s.prediction, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD)
