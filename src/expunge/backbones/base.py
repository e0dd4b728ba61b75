"""What every model family must say about itself.

A backbone wraps a Diffusers pipeline and states *scalings*: what the denoiser is fed, what time means, how noise is
added, how latents become pictures. Control flow (sampling, training) is shared and lives here or in the engine.

Conventions: latents `(b c h w)` float32; network time `t` `(b,)`, float32, as the pipeline feeds it to its denoiser;
a *training index* is an integer in [0, 1000), 0 the cleanest.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, quoted, suggestion
from expunge.hardware import normalized_quickly


def diffusers_class(name: str) -> Any:
    """A class of Diffusers. What loads no pipeline does without that library, whose import takes seconds."""
    import diffusers

    return getattr(diffusers, name)


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is told besides latents and time: {keyword: tensor `(b ...)`}, one row per prompt."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        return Conditioning({k: v[rows] for k, v in self.tensors.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        return Conditioning({k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors})


class Prompts(Protocol):
    """Conditioning of a list of prompts, for whichever rows are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Conditioning: ...


Asked = tuple[Tensor, Tensor, Conditioning]
"""What a denoiser is asked: latents `(b c h w)`, network time `(b,)`, conditioning `(b ...)`."""


Solver = Generator[tuple[Tensor, Tensor], Tensor, Tensor]
"""A solver at work: it yields noisy latents `(b c h w)` with their network times `(b,)`, is sent the prediction there, and
returns clean latents. So whoever predicts decides what shares a pass."""


def solved(
    solvers: Sequence[Solver], predict: Callable[[Mapping[int, tuple[Tensor, Tensor]]], Sequence[Tensor]]
) -> list[Tensor]:
    """What each of `solvers` returns. `predict` is asked for all that have not ended, by their places, at once."""
    asked = {i: next(solver) for i, solver in enumerate(solvers)}
    clean: dict[int, Tensor] = {}
    while asked:
        for i, prediction in zip([*asked], predict(asked), strict=True):
            try:
                asked[i] = solvers[i].send(prediction)
            except StopIteration as end:
                clean[i] = end.value
                del asked[i]
    return [clean[i] for i in range(len(solvers))]


@dataclass
class Evaluations:
    """How often a denoiser was evaluated, in latents: the unit in which the cost of a step is counted."""

    forward: int = 0
    backward: int = 0


class Backbone(ABC):
    """A model family. Subclasses set the class variables and the abstract methods."""

    pipeline_name: ClassVar[str]
    """The class of the Diffusers pipeline whose behaviour this backbone reproduces."""
    denoiser_name: ClassVar[str]
    """The pipeline component that is trained: "unet" or "transformer"."""
    original_prefixes: ClassVar[Mapping[str, str]]
    """{component: how its tensors' names begin in a checkpoint of one file, in the layout of the family's authors}; the
    denoiser's prefix is no other family's."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Components that a pipeline is loaded without."""
    parameter_groups: ClassVar[Mapping[str, str]]
    """{group: regular expression over parameter names}; "full" is always there. "lora" names the weights of the linear
    layers (attention and feed-forward projections) that adapters change; it is trained through them alone."""
    text_map_names: ClassVar[str] = ""
    """Regular expression over the names of the weights `(out d)` that are applied to `encoder_hidden_states` as they are
    encoded; empty for a family that has none, since its deeper layers see something else."""
    solvers: ClassVar[Mapping[str, str]]
    """{name: class of the Diffusers scheduler} beside "default", the pipeline's own."""
    replay_solver: ClassVar[str]
    """The solver with which the published method samples replay latents."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        for module in self.denoiser.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(normalized_quickly)

    # -- what a family states -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def reader(self) -> tuple[Any, int]:
        """The tokenizer of the text encoder that reads most of a prompt, and how many tokens that reads."""

    @abstractmethod
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """What the text encoders make of `prompts`, one row each, on the model's device."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction `(b c h w)` float32 at network time `t` `(b,)`, in the pipeline's own sign."""

    @abstractmethod
    def network_time(self, indices: Tensor) -> Tensor:
        """Network time of training indices: `(b,)` integers in [0, 1000) -> `(b,)` float32."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Clean latents `(b c h w)` carried to network time `t` with `noise` `(b c h w)`."""

    @abstractmethod
    def unscale(self, latents: Tensor) -> Tensor:
        """Latents as the denoiser sees them -> latents as the autoencoder decodes them."""

    # -- what follows ---------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of `prompts`, one row each, on the model's device; raises as `check_read` does."""
        self.check_read(prompts)
        return self.conditioning(prompts)

    def check_read(self, prompts: Sequence[str]) -> None:
        """
        Raises:
            ExpungeError: for a prompt of which the text encoders would not see the end: a concept there would be missed.
        """
        tokenizer, most = self.reader
        for prompt, tokens in zip(prompts, tokenizer(list(prompts), verbose=False)["input_ids"], strict=True):
            if len(tokens) > most:
                raise ExpungeError(
                    f"The prompt {quoted(prompt)} has {len(tokens)} tokens, and the model reads {most}. Shorten it, in the "
                    "vocabulary or folder that it comes from."
                )

    def encode_each(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode`; a prompt that occurs again is not encoded again."""
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self.encode(list(place))[torch.tensor([place[prompt] for prompt in prompts])]

    @property
    def denoiser(self) -> nn.Module:
        return cast(nn.Module, getattr(self.pipeline, self.denoiser_name))

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        self.pipeline.to(device)
        return self

    @contextmanager
    def denoiser_alone(self) -> Iterator[None]:
        """Inside the block what makes prompts and pictures waits in main memory, and leaves a GPU to the denoiser. It works
        there too, slowly."""
        components = self.pipeline.components.items()
        others = [c for name, c in components if isinstance(c, nn.Module) and name != self.denoiser_name]
        try:
            for component in others:
                component.to("cpu")
            yield
        finally:
            for component in others:
                component.to(self.device)

    def lay_out(self, layout: torch.memory_format) -> None:
        """Put the weights of the denoiser's convolutions into a memory layout. Values do not change."""
        self.denoiser.to(memory_format=layout)  # type: ignore[call-overload]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(c, h, w)` of the latents of one picture at the model's own size."""
        config = cast(Any, self.denoiser).config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (config.in_channels, height, width)

    def copy_denoiser(self, dtype: torch.dtype, changing: Collection[str] | None = None) -> nn.Module:
        """A frozen copy of the denoiser as it is now, in `dtype`.

        Args:
            changing: names of the parameters that will change here. Others are shared with the copy where they have `dtype`
                already. None: nothing is shared.
        """
        own = {} if changing is None else dict(self.denoiser.named_parameters())
        kept = {id(p): p for name, p in own.items() if name not in (changing or ()) and p.dtype == dtype}
        clone = copy.deepcopy(self.denoiser, kept).requires_grad_(False).eval()
        return nn.Module.to(clone, dtype)  # Diffusers' own `to` warns of modules to keep in float32 even of none

    @contextmanager
    def borrowing(self, lender: nn.Module, changing: Collection[str], values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the matrices that do not change are those of `lender`, a copy of the denoiser in the dtype of an
        autocast, which would round them to the same values in every pass. Vectors stay: some layers compute with them in
        float32.

        Args:
            changing: names of the parameters that change here.
            values: what the others are, which they have again after the block, in float32.
        """
        theirs = dict(lender.named_parameters())
        fixed = {n: p for n, p in self.denoiser.named_parameters() if n not in changing and p.ndim > 1}
        try:
            for name, parameter in fixed.items():
                parameter.data = theirs[name].data
            yield
        finally:
            for name, parameter in fixed.items():
                parameter.data = values[name].to(parameter.device, torch.float32, copy=True)

    @classmethod
    def pattern_of(cls, group: str) -> str:
        """Regular expression over parameter names of `group`.

        Raises:
            ExpungeError: for a group that this family does not have.
        """
        groups = {"full": "", **cls.parameter_groups}
        if group not in groups:
            raise ExpungeError(f"{cls.__name__} has no parameter group {group!r}. {suggestion(group, groups)}")
        return groups[group]

    @classmethod
    def check_solver(cls, solver: str) -> None:
        """
        Raises:
            ExpungeError: for a solver that this family does not have.
        """
        known = ("default", *cls.solvers)
        if solver not in (*known, "published"):
            raise ExpungeError(f"{cls.__name__} has no solver {solver!r}. {suggestion(solver, known)}")

    def parameters_of(self, group: str) -> list[str]:
        """Names of the denoiser's parameters in `group`.

        Raises:
            ExpungeError: for a group that this family does not have.
        """
        pattern = self.pattern_of(group)
        names = [n for n, _ in self.denoiser.named_parameters() if re.search(pattern, n)]
        if not names:
            raise ExpungeError(f'No parameter of this {self.denoiser_name} is in the group {group!r}. Choose "full".')
        return names

    def text_maps(self) -> list[str]:
        """Names of the weights that read an encoded prompt (`text_map_names`).

        Raises:
            ExpungeError: for a family that has none.
        """
        if not self.text_map_names:
            raise ExpungeError(f"{type(self).__name__} does not read prompts through linear maps of their own.")
        return [n for n, _ in self.denoiser.named_parameters() if re.search(self.text_map_names, n)]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Standard normal latents `(b c h w)`, one picture per generator, drawn on the CPU."""
        return torch.stack([torch.randn(self.latent_shape, generator=g) for g in generators])

    def scheduler(self, solver: str = "default") -> Any:
        """A fresh scheduler: the pipeline's own configuration under the named solver."""
        self.check_solver(solver)
        own = self.pipeline.scheduler
        if solver == "published":
            solver = self.replay_solver
        # Diffusers takes its defaults for what the stored file left out, also where the pipeline has corrected them since.
        defaults = signature(type(own).__init__).parameters
        left_out = own.config.get("_use_default_values", ())
        corrected = {name: own.config[name] for name in left_out if own.config[name] != defaults[name].default}
        if solver == "default":
            return type(own).from_config(own.config, **corrected)
        # Clipping is for pixels; a solver must not bring it to latents by its own default.
        return diffusers_class(self.solvers[solver]).from_config(own.config, **{**corrected, "clip_sample": False})

    def solving(self, generators: Sequence[torch.Generator], *, steps: int, solver: str = "default") -> Solver:
        """A solver that begins at noise. One generator per picture draws it, and what the solver adds to it on the way."""
        scheduler = self.scheduler(solver)
        scheduler.set_timesteps(steps, device=self.device)
        offered = {"generator": [*generators], "eta": 0.0}  # as the stock pipelines do
        taken = {name: offered[name] for name in offered.keys() & signature(scheduler.step).parameters.keys()}
        latents = self.noise(generators).to(self.device) * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            prediction = yield noisy, t.expand(len(noisy))
            latents = scheduler.step(prediction, t, latents, **taken, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def sample(
        self,
        denoiser: nn.Module,
        conditioning: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        steps: int,
        guidance: float = 1.0,
        unconditional: Conditioning | None = None,
        solver: str = "default",
    ) -> Tensor:
        """Clean latents `(b c h w)` by `steps` solver steps from noise, one generator per picture.

        Guidance above 1 is classifier-free, towards `conditioning` and away from `unconditional` (one row, the empty
        prompt), with both rows in one batch as the stock pipelines do: u + g (c - u).
        """
        guided = guidance > 1.0
        if guided:
            if unconditional is None:
                raise ValueError("guidance needs the conditioning of the empty prompt")
            rows = torch.zeros(len(generators), dtype=torch.long)
            conditioning = Conditioning.cat([unconditional[rows], conditioning])

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            if not guided:
                return self.predict(denoiser, noisy, t, conditioning)
            both = self.predict(denoiser, torch.cat([noisy, noisy]), torch.cat([t, t]), conditioning)
            without, with_prompt = both.chunk(2)
            return without + guidance * (with_prompt - without)

        (clean,) = solved([self.solving(generators, steps=steps, solver=solver)], lambda asked: [predict(*asked[0])])
        return clean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `(b 3 h w)` in [0, 1], float32 on the CPU."""
        vae = self.pipeline.vae
        image = vae.decode(self.unscale(latents).to(vae.device, vae.dtype), return_dict=False)[0]
        return cast(Tensor, self.pipeline.image_processor.postprocess(image, output_type="pt")).float().cpu()


@dataclass(frozen=True)
class Predictor:
    """A denoiser with its backbone, counting its evaluations: `predictor(latents, t, conditioning)` is eps, v or flow."""

    backbone: Backbone
    denoiser: nn.Module
    evaluations: Evaluations

    def __call__(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.evaluations.forward += len(latents)
        prediction = self.backbone.predict(self.denoiser, latents, t, conditioning)
        if prediction.requires_grad:
            self.evaluations.backward += len(latents)
        return prediction

    def encode(self, prompts: Sequence[str]) -> Prompts:
        """Conditioning of `prompts`, made once of each."""
        return self.backbone.encode_each(prompts)

    def each(self, parts: Sequence[Asked]) -> list[Tensor]:
        """The prediction for each of `parts`, from one pass: rows do not see each other, so joining changes no value."""
        latents, t, conditioning = zip(*parts, strict=True)
        prediction = self(torch.cat(latents), torch.cat(t), Conditioning.cat(conditioning))
        return list(prediction.split([len(times) for times in t]))

    @torch.no_grad()
    def sample(
        self, conditioning: Conditioning, generators: Sequence[torch.Generator], *, steps: int, solver: str
    ) -> Tensor:
        """Latents `(b c h w)` without guidance, as replay uses them."""
        work = self.backbone.solving(generators, steps=steps, solver=solver)
        (clean,) = solved([work], lambda asked: [self(*asked[0], conditioning)])
        return clean

    @torch.no_grad()
    def trajectories(
        self, parts: Sequence[tuple[Conditioning, Sequence[torch.Generator], int]], *, solver: str
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The ways of `sample`, each part's with its own number of solver steps: noisy latents `(s b c h w)`, network times
        `(s b)` and predictions `(s b c h w)`. One pass predicts for all that have not ended.
        """
        solvers = [self.backbone.solving(generators, steps=steps, solver=solver) for _, generators, steps in parts]
        points: list[list[tuple[Tensor, ...]]] = [[] for _ in parts]

        def predict(asked: Mapping[int, tuple[Tensor, Tensor]]) -> list[Tensor]:
            found = self.each([(noisy, t, parts[i][0]) for i, (noisy, t) in asked.items()])
            for (i, (noisy, t)), prediction in zip(asked.items(), found, strict=True):
                points[i].append((noisy, t.float(), prediction))
            return found

        solved(solvers, predict)
        ways = [[torch.stack(of) for of in zip(*met, strict=True)] for met in points]
        return [(latents, t, predictions) for latents, t, predictions in ways]
