"""Where training stands, kept on disk: parameters, AdamW's moments, the number of steps done, checks of the stopping rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.files import load_tensors, metadata, save_tensors, write_text
from expunge.stopping import Check


def store_checkpoint(
    folder: Path,
    done: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    checks: Sequence[Check],
) -> None:
    tensors: dict[str, Tensor] = {}
    if checks:
        tensors["checks"] = torch.tensor([[c.step, c.forget, c.retain] for c in checks], dtype=torch.float64)
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter
        # AdamW has no state yet where every step so far overflowed in fp16, and counts the steps that it really made.
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    name = f"train-{done:06d}.safetensors"
    scale = json.dumps(scaler.state_dict()) if scaler is not None else "{}"
    save_tensors(folder / name, tensors, ("scaler", scale))
    write_text(folder / "latest", name)
    for old in folder.glob("train-*.safetensors"):
        if old.name != name:
            old.unlink()


def restore_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[int, list[Check]]:
    """Load the latest checkpoint into parameters and optimizer; how many steps it had done (0 without one), its checks."""
    latest = folder / "latest"
    if not latest.exists():
        return 0, []
    path = folder / latest.read_text("utf-8")
    tensors = load_tensors(path)
    done = int(path.stem.removeprefix("train-"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            if f"step.{name}" in tensors:
                moments = {
                    k: torch.empty_like(parameter).copy_(tensors[f"{k}.{name}"]) for k in ("exp_avg", "exp_avg_sq")
                }
                optimizer.state[parameter] = {"step": tensors[f"step.{name}"].clone(), **moments}
    if scaler is not None:
        scaler.load_state_dict(json.loads(metadata(path)["scaler"]))
    rows = tensors["checks"].tolist() if "checks" in tensors else []
    return done, [Check(int(step), forget, retain) for step, forget, retain in rows]


def forget_checkpoint(folder: Path) -> None:
    """Let training begin anew."""
    (folder / "latest").unlink(missing_ok=True)


def keep_log_until(log: Path, done: int) -> None:
    """Drop the lines of steps that were done after the checkpoint and will be done again."""
    if log.exists():
        kept = [line for line in log.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        write_text(log, "".join(line for line in kept if json.loads(line)["step"] <= done))
