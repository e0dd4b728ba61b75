"""What the optimizer moves: the weights of a parameter group, or low-rank adapters on them.

With rank r, a weight W `(out, in)` of the group `lora` becomes W + s B A, B `(out, r)`, A `(r, in)`, s = alpha / r. W is
frozen; B begins at zero, so training begins at M(k-1). Constraints see the effective weight and never the factors: a
penalty P on it reaches them by the chain rule,

    dP/dA = s B^T dP/dW,   dP/dB = s dP/dW A^T.

At the end the update is merged into W and the adapters are gone: what is stored is an ordinary weight.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge import seeds
from expunge.backbones import Backbone
from expunge.schema import Strict


class LoraConfig(Strict):
    """Low-rank adapters, where `parameters` is "lora".

    Attributes:
        rank: columns of B and rows of A.
        alpha: the update is scaled by alpha / rank.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, gt=0)


class Trainable(Protocol):
    """What is trained, and the weights that it means."""

    parameters: Mapping[str, nn.Parameter]
    """{name: what the optimizer moves}"""
    weights: Mapping[str, Tensor]
    """{name: weight of the denoiser}, before training the values of M(k-1)"""

    def effective(self) -> Mapping[str, Tensor]:
        """The weights as they are now, in terms of the parameters: autograd leads from these to those."""

    def constrained(self) -> AbstractContextManager[Mapping[str, nn.Parameter]]:
        """The weights as they are now, for constraints to change their `.grad`; on exit it reaches the parameters."""


class Direct:
    """The weights themselves."""

    def __init__(self, denoiser: nn.Module, names: set[str]) -> None:
        self.parameters: Mapping[str, nn.Parameter] = {n: p for n, p in denoiser.named_parameters() if n in names}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.weights: Mapping[str, Tensor] = self.parameters

    def effective(self) -> Mapping[str, Tensor]:
        return self.parameters

    def constrained(self) -> AbstractContextManager[Mapping[str, nn.Parameter]]:
        return nullcontext(self.parameters)


class LowRank:
    """Adapters on the linear layers whose weights are `names`, in the denoiser's place of these layers until `remove`."""

    def __init__(self, denoiser: nn.Module, names: list[str], config: LoraConfig, generator: torch.Generator) -> None:
        import peft  # takes seconds, and is needed nowhere else

        self._denoiser = denoiser
        self._scale = config.alpha / config.rank
        modules = [name.removesuffix(".weight") for name in names]
        with torch.random.fork_rng(devices=[]):  # PEFT draws A from the global generator
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=modules), denoiser
            )
        self._layers: dict[str, Any] = {name: denoiser.get_submodule(name) for name in modules}
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in self._layers.items():
            a, b = self._factors(layer)
            drawn = nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                a.copy_(drawn)
            parameters |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        self.parameters: Mapping[str, nn.Parameter] = parameters
        self.weights: Mapping[str, Tensor] = {
            f"{n}.weight": layer.base_layer.weight for n, layer in self._layers.items()
        }

    def effective(self) -> dict[str, Tensor]:
        """{name of the weight: W + s B A}"""
        effective = {}
        for name, layer in self._layers.items():
            a, b = self._factors(layer)
            effective[f"{name}.weight"] = layer.base_layer.weight + self._scale * (b @ a)
        return effective

    @contextmanager
    def constrained(self) -> Iterator[Mapping[str, nn.Parameter]]:
        with torch.no_grad():
            weights = {name: nn.Parameter(value) for name, value in self.effective().items()}
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        yield weights
        for name, layer in self._layers.items():
            a, b = self._factors(layer)
            gradient = weights[f"{name}.weight"].grad
            assert gradient is not None
            assert a.grad is not None
            assert b.grad is not None
            with torch.no_grad():
                a.grad.add_(b.T @ gradient, alpha=self._scale)
                b.grad.add_(gradient @ a.T, alpha=self._scale)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the effective weights in place of W."""
        for name, value in self.effective().items():
            self.weights[name].copy_(value)

    def remove(self) -> None:
        """Put the layers back where the adapters are."""
        for name, layer in self._layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self._denoiser.get_submodule(parent), child, layer.base_layer)
        del self._denoiser.peft_config

    @staticmethod
    def _factors(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
        return cast(nn.Parameter, layer.lora_A["default"].weight), cast(nn.Parameter, layer.lora_B["default"].weight)


@contextmanager
def trainable(backbone: Backbone, group: str, lora: LoraConfig, seed: int) -> Iterator[Trainable]:
    """The parameters of `group`, ready to be trained. After a block that ends well, adapters are merged; after any, gone.

    Raises:
        ExpungeError: for a group that this family does not have.
    """
    names, denoiser = backbone.parameters_of(group), backbone.denoiser
    if group != "lora":
        yield Direct(denoiser, set(names))
        return
    adapters = LowRank(denoiser, names, lora, seeds.generator(seed, "lora"))
    try:
        yield adapters
        adapters.merge()
    finally:
        adapters.remove()
