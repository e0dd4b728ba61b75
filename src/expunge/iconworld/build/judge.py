"""The judge: trained on renders with augmentation, calibrated, and measured on renders that it never saw.

Unseen renders have other seeds: other sizes, places, turns, tints and noise, of the same drawings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from expunge import files, seeds
from expunge.evaluation.metrics import wilson
from expunge.hardware import autocast
from expunge.iconworld import classifier
from expunge.iconworld.build import draw, icons
from expunge.iconworld.build.loop import Weights, cosine
from expunge.iconworld.build.stock import Labels, Source, labels

VALUES = {"thing": draw.THINGS, "style": draw.STYLE_NAMES, "background": tuple(draw.BACKGROUNDS)}
CALIBRATION_SEED, TEST_SEED = 9_001, 9_002
"""Seeds of renders that nothing is trained on."""
BINS = 10


@dataclass(frozen=True)
class Settings:
    """How the judge is trained.

    Attributes:
        noise: largest standard deviation of the noise that is added, in [-1, 1] units.
        smoothing: of the labels, so that it is not overconfident.
    """

    steps: int = 3000
    batch: int = 96
    rate: float = 3e-3
    noise: float = 0.15
    smoothing: float = 0.05
    seed: int = 0


class Training:
    """A `loop.Trainee`."""

    name = "judge"

    def __init__(self, settings: Settings, source: Source, device: torch.device) -> None:
        self.settings: Mapping[str, object] = asdict(settings)
        self.steps, self._s, self._source, self._device = settings.steps, settings, source, device
        with torch.random.fork_rng():
            torch.manual_seed(seeds.derive(settings.seed, self.name, "weights"))
            self.network = classifier.Classifier({slot: len(v) for slot, v in VALUES.items()}).to(device)
        self.weights = Weights({"judge": self.network}, decay=0.0, weight_decay=0.02)
        self.tensors, self.restore = self.weights.tensors, self.weights.restore

    def step(self, number: int) -> dict[str, float]:
        s, lots = self._s, seeds.generator(self._s.seed, self.name, number)
        pictures, shown = self._source.batch(s.batch, s.seed + 1, number)
        one = shown.beside < 0
        pictures, shown = pictures[one.to(pictures.device)], shown[one]
        pictures = augment(pictures, s.noise, lots).to(self._device)
        self.network.train()
        with autocast(self._device, "auto"):
            logits = self.network(pictures)
        wrong = {
            slot: F.cross_entropy(part.float(), getattr(shown, slot).to(part.device), label_smoothing=s.smoothing)
            for slot, part in logits.items()
        }
        loss = wrong["thing"] + 0.5 * wrong["style"] + 0.5 * wrong["background"]
        self.weights.update(loss, number, cosine(number, s.steps, s.rate, warmup=100), clip=5.0)
        return {slot: value.item() for slot, value in wrong.items()}


def augment(pictures: Tensor, noise: float, lots: torch.Generator) -> Tensor:
    """What a generated picture may suffer: blur, noise, lost detail, other contrast; each picture its own share.

    Args:
        pictures: `(b 3 64 64)` in [-1, 1].
        noise: largest standard deviation.
    """
    device = pictures.device

    def lot(high: float) -> Tensor:
        return (torch.rand(len(pictures), 1, 1, 1, generator=lots) * high).to(device)

    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.lerp(pictures, blurred, (lot(1.6) - 0.6).clamp(min=0))
    coarse = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.where(lot(1.0) < 0.15, coarse, pictures)
    pictures = pictures * (0.9 + lot(0.2)) + lot(0.1) - 0.05
    white = torch.randn(pictures.shape, generator=lots).to(device)
    return (pictures + white * lot(noise)).clamp(-1, 1)


# -- calibration and measurement ----------------------------------------------------------------------------------------


def unseen(seed: int, each: int) -> tuple[Tensor, Labels]:
    """Renders of every thing in every style, `each` times, on backgrounds by lot: pictures in [-1, 1] and labels."""
    things, styles = torch.meshgrid(torch.arange(len(draw.THINGS)), torch.arange(len(draw.STYLE_NAMES)), indexing="ij")
    thing, style = things.flatten().repeat(each), styles.flatten().repeat(each)
    background = torch.randint(len(draw.BACKGROUNDS), (len(thing),), generator=seeds.generator(seed, "backgrounds"))
    sprites = icons.sprites(draw.CANVAS)
    pictures, shown = [], []
    for number, rows in enumerate(torch.arange(len(thing)).split(256)):
        plan = draw.one_each(thing[rows], style[rows], background[rows], seeds.derive(seed, number))
        pictures.append((draw.paint(plan, sprites) * 255).round() / 127.5 - 1)
        shown.append(labels(plan))
    return torch.cat(pictures), Labels(**{k: torch.cat([getattr(s, k) for s in shown]) for k in vars(shown[0])})


@torch.no_grad()
def logits_of(network: classifier.Classifier, pictures: Tensor) -> dict[str, Tensor]:
    parts = [network(part) for part in pictures.split(256)]
    return {slot: torch.cat([part[slot] for part in parts]) for slot in VALUES}


def temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature with the least cross-entropy, to one part in a hundred."""
    tried = torch.logspace(-1, 1, 461)
    losses = torch.stack([F.cross_entropy(logits / t, truth) for t in tried])
    return round(float(tried[losses.argmin()]), 3)


def finish(network: classifier.Classifier, folder: Path, each: int = 3) -> None:
    """Calibrate and write `judge.safetensors`."""
    network = network.cpu().eval()
    pictures, shown = unseen(CALIBRATION_SEED, each)
    degraded = augment(pictures, Settings().noise, seeds.generator(CALIBRATION_SEED, "augment"))
    found = logits_of(network, degraded)
    heads = {
        slot: classifier.Head(values, temperature(found[slot], getattr(shown, slot))) for slot, values in VALUES.items()
    }
    classifier.save(folder / "judge.safetensors", network, heads)


def measure(path: Path, each: int = 3) -> dict[str, Any]:
    """What a stored judge answers to renders that nothing was trained on, as drawn ("clean") and augmented."""
    network, heads = classifier.load(path)
    pictures, shown = unseen(TEST_SEED, each)
    degraded = augment(pictures, Settings().noise, seeds.generator(TEST_SEED, "augment"))
    report: dict[str, Any] = {"n": len(pictures), "heads": {slot: asdict(h) for slot, h in heads.items()}}
    for name, seen in (("clean", pictures), ("augmented", degraded)):
        logits = logits_of(network, seen)
        calibrated = {slot: logits[slot] / heads[slot].temperature for slot in VALUES}
        report[name] = _accuracies(logits, heads, shown)
        report[name]["reliability"] = {s: _reliability(calibrated[s], getattr(shown, s)) for s in VALUES}
    return report


def _accuracies(logits: Mapping[str, Tensor], heads: Mapping[str, classifier.Head], shown: Labels) -> dict[str, Any]:
    """Accuracy of each head, overall and per style; pairs that are confused; how often it is unsure."""
    result: dict[str, Any] = {}
    for slot, values in VALUES.items():
        truth, guess = getattr(shown, slot), logits[slot].argmax(1)
        sure = (logits[slot] / heads[slot].temperature).softmax(1).amax(1) >= heads[slot].threshold
        right = guess == truth
        result[slot] = {
            "accuracy": _share(right),
            "sure_and_right": _share(right & sure),
            "unsure": _share(~sure),
            "per_style": {s: _share(right[shown.style == i]) for i, s in enumerate(draw.STYLE_NAMES)},
            "worst": {v: _share(right[truth == i]) for i, v in enumerate(values) if not bool(right[truth == i].all())},
            "confused": _confused(values, truth, guess, shown.style),
        }
    return result


def _confused(values: tuple[str, ...], truth: Tensor, guess: Tensor, style: Tensor) -> list[dict[str, Any]]:
    """[truth, answer, style, count], the commonest first."""
    wrong = (truth != guess).nonzero()[:, 0]
    counts = Counter(zip(*(t[wrong].tolist() for t in (truth, guess, style)), strict=True))
    return [
        {"shown": values[t], "answer": values[g], "style": draw.STYLE_NAMES[s], "count": n}
        for (t, g, s), n in counts.most_common()
    ]


def _reliability(logits: Tensor, truth: Tensor) -> dict[str, Any]:
    """Mean confidence and accuracy of each filled bin of confidence, and the expected calibration error."""
    confidence, guess = logits.softmax(1).max(1)
    right = (guess == truth).float()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
            "n": int(inside.sum()),
        }
        for inside in (place == b for b in range(BINS))
        if bool(inside.any())
    ]
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(right)
    return {"bins": bins, "error": round(error, 4)}


def _share(right: Tensor) -> dict[str, float | int] | None:
    """A share with its 95 % Wilson interval."""
    value = wilson(int(right.sum()), len(right))
    return None if value is None else value.model_dump()


def plot(report: Mapping[str, Any], path: Path) -> None:
    """The reliability diagram of augmented renders."""
    figure = Figure(figsize=(4.2, 4))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for slot, curve in report["augmented"]["reliability"].items():
        points = [(b["confidence"], b["accuracy"]) for b in curve["bins"]]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{slot}: error {curve['error']:.3f}")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False)
    files.write_figure(path, figure)
