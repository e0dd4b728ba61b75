"""How many solver steps an evaluation picture needs: the judge's answers at fewer steps beside those at twenty, same noise.

    python benchmarks/speed/solver_steps.py RUN...

paints the rows that are painted after every step: of iconworld-dev-a with the base model, and of its own protocol with the
current model of each RUN (with the rows of what it forgot). It writes benchmarks/speed/results/solver_steps.json, and takes
no times: it counts the denoiser's evaluations for a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from expunge import Run, backbones, iconworld
from expunge.backbones import Backbone
from expunge.concepts import Concept
from expunge.evaluation import Images, Protocol, evaluate, protocol_rows
from expunge.files import write_json
from expunge.stream.named import model_folder

PROTOCOL = "iconworld-dev-a"
REFERENCE = 20
STEPS = (REFERENCE, 10, 8, 6, 5, 4)


def measured(backbone: Backbone, protocol: Protocol, concepts: list[Concept]) -> list[dict[str, Any]]:
    judge = iconworld.judge()
    rows = [r for r in protocol_rows(protocol, iconworld.vocabulary(), concepts) if r.level == "between"]
    found: list[dict[str, Any]] = []
    first: tuple[pd.DataFrame, Images] | None = None
    for steps in STEPS:
        sampler = protocol.sampler.model_copy(update={"steps": steps})
        table, images = evaluate(backbone, rows, sampler, judge, precision="auto")
        first = first or (table, images)
        same = (table["shown"] == first[0]["shown"]).fillna(False)
        apart = [abs(images[r.id].astype(float) - first[1][r.id]).mean() / 255 for r in rows]
        shown = table.groupby("role")["shown"].mean()
        found.append(
            {
                "steps": steps,
                "evaluations": 2 * steps,
                "pictures": len(rows),
                "same_answers": int(same.sum()),
                "shown": {str(role): float(share) for role, share in shown.items()},
                "recognisable": float(table["recognisable"].mean()),
                "pixel_difference": float(sum(apart) / len(apart)),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "solver_steps.json")
    arguments = parser.parse_args()
    base = backbones.load(model_folder("iconworld"))
    models = {"base model": measured(base, iconworld.protocol(PROTOCOL), [])}
    for path in arguments.runs:
        run = Run(path)
        accepted = [record for record in run.records if record.status == "accepted"]
        forgotten = [run.source.concept(name) for record in accepted for name in record.concepts]
        name = f"{path.name}, {run.protocol.name}, after {len(accepted)} requests"
        models[name] = measured(run.backbone(), run.protocol, forgotten)
    write_json(arguments.out, {"schema": 1, "solver": "dpm++", "guidance": 3.0, "models": models})


if __name__ == "__main__":
    main()
