"""Losses in words, and as tensors: what the teacher paints, and what student and teacher are told of it.

A method says with `Aim`s what a step shall learn; a `Term` is one made ready for training, and `Rows` are what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from expunge import seeds
from expunge.backbones import Conditioning, Prompts


@dataclass(frozen=True)
class Scenes:
    """The x_t of a loss, in words: what the teacher paints x_0 for, and how far it is noised.

    Attributes:
        role: a name; losses with the same role see the same x_t.
        prompts: what x_0 is painted for.
        latents: latents of each prompt in a bank.
        seed: of the noise that painting starts from.
        times: least and greatest training index, both inclusive.
        picked: places of the prompts whose x_t are used; None for all.
        lasting: whether later steps will ask for the same scenes.
    """

    role: str
    prompts: Sequence[str]
    latents: int
    seed: int
    times: tuple[int, int] = (0, 999)
    picked: Sequence[int] | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Aim:
    """A loss in words: on x_t that was painted for its scenes' prompt i, the student is told prompt i, and the teacher one of
    targets i. Aims of one loss are added up: its rows are drawn from the scenes of all.

    Attributes:
        loss: its name.
        targets: equally many for each prompt.
    """

    loss: str
    scenes: Scenes
    prompts: Sequence[str]
    targets: Sequence[Sequence[str]]

    @property
    def distils(self) -> bool:
        """Whether student and teacher are told the same."""
        return [[prompt] for prompt in self.prompts] == [list(targets) for targets in self.targets]

    def narrowed(self) -> Aim:
        """The same of the picked prompts alone."""
        if self.scenes.picked is None:
            return self
        picked = self.scenes.picked
        painted = replace(self.scenes, prompts=[self.scenes.prompts[i] for i in picked], picked=None)
        return Aim(self.loss, painted, [self.prompts[i] for i in picked], [self.targets[i] for i in picked])

    @staticmethod
    def together(aims: Sequence[Aim], seed: int) -> Aim:
        """Aims of one loss as one, whose scenes are painted from `seed`."""
        painted = [prompt for aim in aims for prompt in aim.scenes.prompts]
        prompts = [prompt for aim in aims for prompt in aim.prompts]
        targets = [each for aim in aims for each in aim.targets]
        return Aim(aims[0].loss, replace(aims[0].scenes, prompts=painted, seed=seed), prompts, targets)


@dataclass(frozen=True)
class Term:
    """An `Aim` made ready: what student and teacher are told, `(n ...)` and `(n * targets_each ...)`."""

    role: str
    prompts: Prompts
    targets: Prompts
    targets_each: int

    @staticmethod
    def of(aim: Aim, encode: Callable[[Sequence[str]], Prompts]) -> Term:
        prompts = encode(aim.prompts)
        targets = prompts if aim.distils else encode([target for targets in aim.targets for target in targets])
        return Term(aim.scenes.role, prompts, targets, len(aim.targets[0]))

    def told(self, rows: Rows) -> Conditioning:
        return self.prompts[rows.prompts]

    def aimed(self, rows: Rows) -> Conditioning:
        return self.targets[rows.prompts * self.targets_each + (rows.lots * self.targets_each).long()]

    def both(self, rows: Rows) -> tuple[Conditioning, Conditioning]:
        """What student and teacher are told."""
        told = self.told(rows)
        return told, told if self.targets is self.prompts else self.aimed(rows)


@dataclass(frozen=True)
class Rows:
    """Noisy latents `(b c h w)`, network times `(b,)`, the index of each row's prompt `(b,)`, and its lot `(b,)`.

    A lot is uniform in [0, 1) and decides which of a prompt's targets the row draws. `places` say where the rows lie among
    recorded ones `(b,)`; None where they are made as they are needed.
    """

    latents: Tensor
    t: Tensor
    prompts: Tensor
    lots: Tensor
    places: Tensor | None = None


def replay_seed(step_seed: int, role: str) -> int:
    """The seed of what is painted in a role of a step."""
    return seeds.derive(step_seed, "replay", role)
