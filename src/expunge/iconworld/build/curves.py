"""`python -m expunge.iconworld.build.curves FOLDER PICTURE.png`: the training curves of all stages."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer
from matplotlib.figure import Figure

from expunge import files

SHOWN = {
    "autoencoder": {"l1": "mean absolute error, pixels in [-1, 1]"},
    "denoiser": {"loss": "min-SNR weighted error"},
    "judge": {"thing": "cross-entropy: things", "style": "styles", "background": "backgrounds"},
}
"""{stage: {column of its curve: label}}"""
SMOOTHED = 10
"""Points that are averaged: each is the loss of a single batch."""


def plot(folder: Path, picture: Path) -> None:
    """Draw `FOLDER/<stage>.csv` of each stage side by side."""
    figure = Figure(figsize=(12, 3.2))
    axes = figure.subplots(1, len(SHOWN))
    for ax, (stage, columns) in zip(axes, SHOWN.items(), strict=True):
        curve = pd.read_csv(folder / f"{stage}.csv")
        for column, label in columns.items():
            ax.plot(curve["step"], curve[column].rolling(SMOOTHED, min_periods=1).mean(), label=label)
        ax.set(title=stage, xlabel="optimizer step", yscale="log")
        ax.legend(frameon=False, fontsize=8)
    files.write_figure(picture, figure)


if __name__ == "__main__":
    typer.run(plot)
