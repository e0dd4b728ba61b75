"""Stable Diffusion 3 and 3.5: a transformer that predicts the flow velocity noise - x0 from joint text-image attention.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206;
scalings as in Diffusers' `StableDiffusion3Pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.backbones.base import Backbone, Conditioning

T5_TOKENS = 256
"""Of a prompt, read by the third text encoder. Source: Diffusers' pipeline."""


class StableDiffusion3(Backbone):
    """Network time is 1000 sigma, sigma in (0, 1]; x_sigma = (1 - sigma) x0 + sigma noise.

    There is no cross-attention in a joint-attention transformer. Its counterpart here are the projections of the text
    stream inside joint attention: what an image token can read from a text token passes through them.
    """

    pipeline_name = "StableDiffusion3Pipeline"
    denoiser_name = "transformer"
    original_prefixes = {
        "transformer": "model.diffusion_model.joint_blocks.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.clip_g.",
        "text_encoder_3": "text_encoders.t5xxl.",
    }
    parameter_groups = {
        "cross-attention": r"\.attn\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\.",
        "cross-attention-kv": r"\.attn\.add_[kv]_proj\.",
        "lora": (r"\.(attn2?\.(to_([qkv]|out\.0|add_out)|add_[qkv]_proj)|ff(_context)?\.net\.(0\.proj|2))\.weight$"),
    }
    solvers = {"euler": "FlowMatchEulerDiscreteScheduler"}
    replay_solver = "euler"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        # The scheduler lists its training times from noise to picture; a training index counts the other way.
        self._times = self.scheduler().timesteps.flip(0).float()

    @property
    def reader(self) -> tuple[Any, int]:
        if self.pipeline.text_encoder_3 is not None:
            return self.pipeline.tokenizer_3, T5_TOKENS
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    @torch.no_grad()
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        device = self.pipeline.text_encoder.device
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        tensors = {"encoder_hidden_states": states, "pooled_projections": pooled}
        return Conditioning({name: tensor.float().to(self.device) for name, tensor in tensors.items()})

    def predict(self, denoiser: nn.Module, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(denoiser.parameters()).dtype
        prediction = denoiser(
            hidden_states=latents.to(dtype),
            timestep=t,
            **{k: v.to(dtype) for k, v in conditioning.tensors.items()},
            return_dict=False,
        )[0]
        return cast(Tensor, prediction).float()

    def network_time(self, indices: Tensor) -> Tensor:
        return self._times[indices.cpu()].to(indices.device)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = (t / 1000.0).view(-1, 1, 1, 1)
        return (1.0 - sigma) * clean + sigma * noise

    def unscale(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        return latents / cast(float, config.scaling_factor) + cast(float, config.shift_factor)
