"""Does a run that is killed anywhere end with the same bits? SIGKILL at random moments, then the same command again.

    python benchmarks/faults/sigkill.py

serves three requests without interruption in runs/sigkill/whole, then the same three in runs/sigkill/killed: every process is
killed at a random moment and the same command started again, until one comes to its end before its moment. What it leaves is
compared with runs/sigkill/whole, and the next run begins from nothing. After 50 kills the last run is let finish. Results are
written after every kill to benchmarks/faults/results/sigkill.json; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tamper import SETTINGS

from expunge import Run
from expunge.files import digest_file, read_json, write_json, write_text
from expunge.stream import verify
from expunge.stream.config import DEFAULT_PRESET, preset

HERE = Path(__file__).parent
REQUESTS = ("panda", "mosaic", "pumpkin")
FILES = ("weights.safetensors", "prompts.json", "choices.json", "judgements.parquet")
CHANGES = {**SETTINGS, "train": {**SETTINGS["train"], "checkpoint_steps": 2}, "gate": {"enforce": False}}
"""Six optimizer steps forget nothing, so every step is let pass."""


def command(run: Path) -> list[str]:
    settings = run.with_name("preset.toml")
    return [sys.executable, "-m", "expunge.cli", "run", str(run), *REQUESTS, "--preset", str(settings)]


def start(run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def serve_whole(run: Path) -> dict[str, float]:
    """An uninterrupted run: the seconds after which its process began to write, and ended. Kills fall between the two, and
    none is spent on Python's own imports."""
    shutil.rmtree(run, ignore_errors=True)
    begun = time.perf_counter()
    process = start(run)
    while not (run / "run.toml").exists():
        assert process.poll() is None, "the process ended before it began to write"
        time.sleep(0.005)
    first = time.perf_counter() - begun
    finish(process)
    return {"first_file": round(first, 2), "end": round(time.perf_counter() - begun, 2)}


def killed_after(run: Path, seconds: float) -> bool:
    """Start the command and kill it after `seconds`; False where it came to its end before."""
    process = start(run)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    if not killed:
        finish(process)
    return killed


def place(run: Path) -> dict[str, Any]:
    """Where a kill hit: the last event, and which files of the open step there were, half-written ones too."""
    if not (run / "events.jsonl").exists():
        return {"last_event": None, "step": None, "files": files(run)}
    found = Run(run)
    event = found.directory.events()[-1]
    waiting = found.open_requests
    step = found.directory.step(waiting[0].step) if waiting else None
    lines = step.log.read_bytes().count(b"\n") if step and step.log.exists() else 0
    return {
        "last_event": event["event"],
        "step": step.index if step else None,
        "optimizer_steps": lines,
        "files": files(step.path) if step else [],
    }


def files(folder: Path) -> list[str]:
    """All but the pictures, which are many."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".png")


def digests(run: Path) -> dict[str, str]:
    steps = sorted((run / "steps").iterdir())
    return {f"{step.name}/{name}": digest_file(step / name) for step in steps for name in FILES}


def difference(run: Path, whole: Path) -> list[str]:
    """What a finished run has otherwise than the uninterrupted one, and what `verify` finds in it."""
    ours, theirs = digests(run), digests(whole)
    return [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)] + list(verify(run).problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sigkill"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sigkill.json")
    options = parser.parse_args()
    whole, run = options.folder / "whole", options.folder / "killed"
    write_text(options.folder / "preset.toml", preset(DEFAULT_PRESET, CHANGES).to_toml())
    if options.out.exists():
        result = read_json(options.out)
        assert result["seed"] == options.seed, f"{options.out} has results of another seed"
    else:
        shutil.rmtree(run, ignore_errors=True)
        result = {
            "schema": 1,
            "seed": options.seed,
            "requests": REQUESTS,
            "seconds": serve_whole(whole),
            "kills": 0,
            "identical": 0,
            "runs": [],
            "where": [],
        }
    while result["kills"] < options.kills or compared(result) < result["kills"]:
        ended = go_on(result, run, whole, options.kills)
        write_json(options.out, result)
        if ended:
            shutil.rmtree(run)
    print(f"{result['identical']} of {result['kills']} kills left no trace. {options.out}")


def compared(result: dict[str, Any]) -> int:
    """Kills of the runs that have come to their end."""
    return sum(run["kills"] for run in result["runs"])


def go_on(result: dict[str, Any], run: Path, whole: Path, kills: int) -> bool:
    """One process: killed at its moment, or let finish and what it left compared; whether the run has come to its end."""
    number = result["kills"] + 1
    rng = random.Random(f"{result['seed']}/{number}/{len(result['runs'])}")
    seconds = rng.uniform(result["seconds"]["first_file"], result["seconds"]["end"])
    if number <= kills and killed_after(run, seconds):
        result["kills"] = number
        hit = {"kill": number, "run": len(result["runs"]) + 1, "seconds": round(seconds, 2), **place(run)}
        result["where"].append(hit)
        print(json.dumps(hit), flush=True)
        return False
    if number > kills:
        finish(start(run))
    hits = [hit for hit in result["where"] if hit["run"] == len(result["runs"]) + 1]
    different = difference(run, whole)
    result["runs"].append({"kills": len(hits), "different": different})
    result["identical"] += 0 if different else len(hits)
    return True


if __name__ == "__main__":
    main()
