"""`expunge bench FILE`: experiments as files. `expunge bench speed`: the two engines timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from expunge.cli.shared import Set, changes_of, console, sentences

if TYPE_CHECKING:
    from expunge.reference import EngineName


class _FileByDefault(TyperGroup):
    """`bench FILE` means `bench experiment FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in self.commands or args[0] in ("--help", "-h")
        return super().parse_args(ctx, args if named else ["experiment", *args])


app = typer.Typer(
    cls=_FileByDefault,
    no_args_is_help=True,
    help="Serve the experiment of a FILE (`bench FILE`), or time the two engines (`bench speed`).",
)


@app.command("experiment")
def experiment_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An experiment file, e.g. benchmarks/ablation/main.toml.")
    ],
    only: Annotated[list[str], typer.Option(metavar="VARIANT", help="Serve this variant alone (repeatable).")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Serve this seed alone (repeatable).")] = [],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Folder of unfinished runs.")] = Path("runs/bench"),
    jobs: Annotated[int, typer.Option(min=1, help="Sequences to serve at once, each by a process of its own.")] = 1,
    write: Annotated[
        Path | None, typer.Option(help="Serve nothing: write table and figures of the results so far into this folder.")
    ] = None,
) -> None:
    """Serve the sequences of an experiment that have no results yet, and show the results of all that were asked for.

    They lie in the folder named like FILE.
    """
    with sentences("the same command goes on from the last checkpoint of every sequence."):
        from expunge.benchmark import (
            MATCHED_UA,
            Experiment,
            caveats,
            last_steps,
            serve_at_once,
            serve_variant,
            unserved,
            write_experiment,
        )
        from expunge.cli.progress import RunProgress
        from expunge.cli.tables import experiment_table

        experiment, results = Experiment.read(file), file.with_suffix("")
        if write is not None:
            stem = write / file.stem
            for family, values in write_experiment(experiment, results, stem).groupby("family", sort=False):
                for metric in ("ira", "cra"):
                    found = values[metric].dropna()
                    value = f"{found.mean():.3f} (seeds {len(found)})" if len(found) else "not reached, or never below"
                    console.print(f"{family}: {metric.upper()} at UA {MATCHED_UA}: {value}", highlight=False)
            console.print(f"Written: {stem}-*", highlight=False)
            return
        for name in only:
            experiment.variant(name)
        asked = [(name, number) for number in seed or experiment.seeds for name in only or experiment.variants]
        todo = unserved(experiment, dict.fromkeys(asked), results)
        if jobs > 1:
            serve_at_once(file, todo, work, jobs, _say)
        else:
            for name, number in todo:
                with RunProgress(console) as progress:
                    serve_variant(experiment, name, number, results, work / file.stem, progress)
                _say((name, number), "done")
        table = last_steps(results)
        table = table[[row in asked for row in zip(table["variant"], table["seed"], strict=True)]]
        console.print(experiment_table(table))
        for caveat in caveats(table):
            console.print(caveat, style="yellow", highlight=False)


def _say(sequence: tuple[str, int], what: str, log: Path | None = None) -> None:
    name, seed = sequence
    console.print(f"{name}, seed {seed}: {what}{f' (log: {log})' if log else ''}", highlight=False)


@app.command()
def speed(
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of the protocol to time, each under both engines.")
    ] = 6,
    protocol: Annotated[str, typer.Option(help="A built-in protocol or a TOML file.")] = "iconworld-dev-a",
    preset: Annotated[str, typer.Option(help="A preset's name, or a TOML file.")] = "lacu-iconworld",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    assignments: Set = [],  # noqa: B006 - typer copies it
    of_reference: Annotated[
        list[str], typer.Option("--reference-set", metavar="KEY=VALUE", help="As --set, for the reference alone.")
    ] = [],  # noqa: B006
    of_fast: Annotated[
        list[str], typer.Option("--fast-set", metavar="KEY=VALUE", help="As --set, for the fast engine alone.")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Results file; benchmarks/speed/results/PROTOCOL.json.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the two engines' runs, one for each results file.")] = Path(
        "runs/speed"
    ),
    force: Annotated[bool, typer.Option("--force", help="Time although something else is running.")] = False,
) -> None:
    """Time the published loop (train.engine=reference) and the fast engine in turn, from the same weights."""
    with sentences("the same command goes on after the last pair that was timed."):
        from expunge.benchmark import speed as timing
        from expunge.cli.tables import speed_table

        own: dict[EngineName, list[str]] = {"reference": of_reference, "fast": of_fast}
        plan = timing.Plan(
            preset=preset,
            protocol=protocol,
            seed=seed,
            changes={engine: changes_of([*assignments, *more]) for engine, more in own.items()},
        )
        target = out or Path("benchmarks/speed/results") / f"{Path(protocol).stem}.json"

        def say(request: int, engine: EngineName) -> None:
            console.print(f"request {request}, {engine} ...", highlight=False)

        results = timing.measure(plan, requests, target, work / target.stem, force=force, progress=say)
        console.print(speed_table(results))
        for caveat in results.caveats:
            console.print(caveat, style="yellow", highlight=False)
        console.print(f"{target}", highlight=False)
