"""Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon or v from CLIP states.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752; scalings as in
Diffusers' `StableDiffusionPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.backbones.base import Backbone, Conditioning, diffusers_class


class StableDiffusion(Backbone):
    """Epsilon and v-prediction follow from the scheduler: losses compare predictions with predictions, solvers convert."""

    pipeline_name = "StableDiffusionPipeline"
    denoiser_name = "unet"
    unused = ("safety_checker",)
    original_prefixes = {
        "unet": "model.diffusion_model.input_blocks.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.",
    }
    parameter_groups = {
        "cross-attention": r"\.attn2\.",
        "cross-attention-kv": r"\.attn2\.to_[kv]\.",
        "lora": r"\.(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))\.weight$",
    }
    text_map_names = r"\.attn2\.to_[kv]\.weight$"
    solvers = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler"}
    replay_solver = "ddim"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        # The autoencoder is faster in this layout whatever it is computed in; that of the denoiser depends on it.
        pipeline.vae.to(memory_format=torch.channels_last)
        self._noising = diffusers_class("DDPMScheduler").from_config(pipeline.scheduler.config)

    @property
    def reader(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    @torch.no_grad()
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        device = self.pipeline.text_encoder.device
        states, _ = self.pipeline.encode_prompt(
            list(prompts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning({"encoder_hidden_states": states.float().to(self.device)})

    def predict(self, denoiser: nn.Module, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(denoiser.parameters()).dtype
        states = conditioning.tensors["encoder_hidden_states"].to(dtype)
        prediction = denoiser(latents.to(dtype), t, encoder_hidden_states=states, return_dict=False)[0]
        return cast(Tensor, prediction).float()

    def network_time(self, indices: Tensor) -> Tensor:
        return indices.float()

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return cast(Tensor, self._noising.add_noise(clean, noise, t.long()))

    def unscale(self, latents: Tensor) -> Tensor:
        return latents / cast(float, self.pipeline.vae.config.scaling_factor)
