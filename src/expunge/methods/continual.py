"""Continual unlearning by re-steering and replay: what DFR and LACU, the two published versions, have in common.

One optimizer step minimises, with forget prompts f paired with mapping prompts g, and retain prompts r,

    L = lambda_unlearn  E || eps(x_t, t, f; theta)  - eps(x_t, t, g; theta*)  ||^2     unlearn:  re-steering
      + lambda_preserve E || eps(x_t, t, r; theta)  - eps(x_t, t, r; theta*)  ||^2     preserve: replay with distillation
      + lambda_empty    E || eps(x_t, t, ""; theta) - eps(x_t, t, ""; theta*) ||^2     empty,    ours
      + lambda_again    E || eps(x_t, t, f'; theta) - eps(x_t, t, g'; theta*) ||^2     again,    ours
      + lambda_reg        || theta - theta* ||^2                                       regularization

x_0 is replayed for f, r, r and f' in turn. The last line is the constraint `l2` (expunge/constraints/l2.py). The two lines
of ours are off unless asked for:

- Guidance subtracts the prediction for the empty prompt, and the published losses hold it by the regularization alone.
  `empty` holds it where guidance asks for it: on latents of pictures that must stay.
- f' are prompts for concepts that earlier steps forgot. Nothing in the published losses keeps these forgotten; `again`
  re-steers them in every later step (expunge/methods/again.py).

`strength` multiplies both losses that forget, and divides what a warm start leaves of a concept's way.

Source: "Distill, Forget, Repeat", arXiv 2512.02657, for the lines that are not marked as ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from expunge.locality import Choice
from expunge.methods.again import steer_again
from expunge.methods.aims import Aim, Scenes, replay_seed
from expunge.methods.base import StepContext
from expunge.methods.mapping import Count, Ranking, pairs
from expunge.methods.resteering import Plan, Resteering, ResteeringConfig, Weight, record_of, resteer
from expunge.methods.retain import RetainConfig, retain_prompts
from expunge.methods.warm_start import WarmStart, WarmStartConfig, warm_start


class ContinualConfig(ResteeringConfig, RetainConfig):
    """A loss whose weight is 0 is left out, with its prompts and its cost.

    Attributes:
        strength: multiplies the weights of the losses that forget; the one knob most people touch.
        lambda_preserve: weight of the distillation loss on retain prompts.
        lambda_empty: weight of the distillation loss on the empty prompt.
        lambda_again: weight of re-steering what earlier steps forgot.
        again_prompts: forget prompts of all earlier concepts together, equally many for each. Where there are more concepts
            than prompts, every step draws which of them have their turn.
        warm_start: false, as published: training begins at M(k-1); or a table: it begins at a closed-form solution for keys
            and values (docs/method.md).
    """

    strength: float = Field(1.0, gt=0, le=1000)
    lambda_preserve: Weight
    lambda_empty: Weight = 0.0
    lambda_again: Weight = 0.0
    again_prompts: Count = 32
    warm_start: WarmStartConfig | Literal[False] = False


class Continual(Resteering):
    """See the module's docstring."""

    config: ContinualConfig

    @property
    def weights(self) -> Mapping[str, float]:
        config = self.config
        weights = {
            "unlearn": config.strength * config.lambda_unlearn,
            "preserve": config.lambda_preserve,
            "empty": config.lambda_empty,
            "again": config.strength * config.lambda_again,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def plan(self, context: StepContext) -> Plan:
        config, weights = self.config, self.weights
        near, choices = pairs(config, context, context.concepts)
        aims = [resteer(config, context, choices)]
        retain: list[str] = []
        if weights.keys() & {"preserve", "empty"}:
            retain = [p for c in context.concepts for p in retain_prompts(config, context, c, list(near[c.name]))]
        scenes = Scenes("retain", retain, context.replay.retain_latents, replay_seed(context.seed, "retain"))
        for loss, prompts in (("preserve", retain), ("empty", [""] * len(retain))):
            if loss in weights:
                aims.append(Aim(loss, scenes, prompts, [[p] for p in prompts]))
        again = steer_again(config, context, config.again_prompts if "again" in weights else 0)
        # As teacher M(k-1) has forgotten what came before: of what little is left another part would be asked every time.
        moved = [*choices, *again.used] if config.teacher == "base" else choices
        start, kept = self._start(context, near, retain, moved)
        record = record_of(choices, near, retain, kept, again.used, again.renewed, start.remaining if start else {})
        return Plan([*aims, *again.aims], record, start)

    def _start(
        self, context: StepContext, near: Mapping[str, Ranking], retain: Sequence[str], choices: Sequence[Choice]
    ) -> tuple[WarmStart | None, list[str]]:
        """The warm start for `choices`, and what it keeps beside the prompts `retain`."""
        config = self.config
        if not config.warm_start:
            return None, []
        kept: list[str] = []
        parts = [[""]]
        if "preserve" in self.weights:
            more = config.model_copy(update={"retain_prompts": config.warm_start.retain_prompts})
            kept = [p for c in context.concepts for p in retain_prompts(more, context, c, list(near[c.name]))]
            replayed = set(retain)
            kept = [prompt for prompt in dict.fromkeys(kept) if prompt not in replayed]
            parts.append([*retain, *kept])
        concepts: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for choice in choices:
            targets = tuple(target.prompt for target in choice.mapping)
            concepts.setdefault(choice.concept, []).append((choice.forget, targets))
        strength = {name: config.strength * context.emphasis.get(name, 1.0) for name in concepts}
        return warm_start(config.warm_start, context.backbone, parts, concepts, strength), kept
