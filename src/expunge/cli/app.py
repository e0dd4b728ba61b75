"""The commands. Exit codes: 0 done, 1 a gate or a verification failed, 2 bad usage or input, 3 interrupted (resumable)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from expunge.errors import ExpungeError, GateFailed, Interrupted, Tampered

if TYPE_CHECKING:
    from expunge.benchmark import Experiment
    from expunge.stream import Run

app = typer.Typer(
    help="Remove concepts from text-to-image diffusion models, one deletion request after another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
MATCHED_UA = 0.95
"""The unlearning accuracy at which curves over a knob are compared."""
console = Console()
problems = Console(stderr=True)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")]
Concepts = Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="Concepts to forget, one request each.")]
StepNumber = Annotated[int, typer.Argument(metavar="STEP", min=0, help="Its number, which is that of its request.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the events.")]
By = Annotated[str, typer.Option(help="Who decides it; kept in the events.", default_factory=getuser)]
Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field of the preset (repeatable).")
]


@contextmanager
def _sentences(resuming: str = "`expunge resume RUN` goes on from the last checkpoint.") -> Iterator[None]:
    """Turn what goes wrong into a sentence and an exit code. `resuming`: how to go on after an interruption."""
    try:
        yield
    except ExpungeError as error:
        problems.print(str(error), style="bold red" if error.exit_code == 2 else "bold yellow", highlight=False)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        problems.print(f"Interrupted. Nothing is lost: {resuming}")
        raise typer.Exit(Interrupted.exit_code) from None


def _quiet() -> None:
    """Silence the libraries' own progress bars and hints; ours say what goes on."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _changes(assignments: list[str]) -> dict[str, Any]:
    """--set train.steps=80 -> {"train": {"steps": 80}}; values are TOML, bare words are strings."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, field = path.partition(".")
        if not equals or bool(dot) != bool(field) or (not dot and section != "seed"):
            raise ExpungeError(f"--set {assignment} is not SECTION.FIELD=VALUE, e.g. train.steps=80 (or seed=1).")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if dot:
            changes.setdefault(section, {})[field] = value
        else:
            changes[section] = value
    return changes


@app.command()
def run(
    path: RunPath,
    concepts: Concepts,
    preset: Annotated[
        str | None, typer.Option(help="A preset's name, or a TOML file; anchored-iconworld where nothing is said.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A built-in model, a Diffusers folder or a hub id.")] = None,
    protocol: Annotated[str | None, typer.Option(help="What is measured: a built-in protocol or a TOML file.")] = None,
    assignments: Set = [],  # noqa: B006 - typer copies it
) -> None:
    """Make a run, and serve one request for each CONCEPT."""
    with _sentences():
        _quiet()
        from expunge.stream import DEFAULT_PRESET, Run

        changes = _changes(assignments)
        if model is not None:
            changes.setdefault("model", {})["source"] = model
        if protocol is not None:
            changes.setdefault("evaluate", {})["protocol"] = protocol
        _serve(Run.create(path, requests=concepts, preset_name=preset or DEFAULT_PRESET, changes=changes))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The run's directory.")] = Path("runs/demo")) -> None:
    """Serve the requests of the protocol iconworld-demo on the built-in model, and write a page about it."""
    with _sentences():
        _quiet()
        from expunge.iconworld import protocol
        from expunge.stream import Run

        if (out / "run.toml").exists():
            _serve(Run(out))
        else:
            name = "iconworld-demo"
            requests = protocol(name).requests
            _serve(Run.create(out, requests=requests, changes={"evaluate": {"protocol": name}}))


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Diffusers folder, a hub id, or a .safetensors file: LoRA, one-file model, denoiser.",
        ),
    ],
    base: Annotated[str, typer.Option(help="The model it was made from: built-in, folder or hub id.")],
    protocol: Annotated[str, typer.Option(help="What is measured: a built-in protocol or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for judgements, pictures, summary.json and report.html.")],
    forgotten: Annotated[
        list[str],
        typer.Option(metavar="CONCEPT", help="What it should not show (repeatable); all of the protocol's by default."),
    ] = [],  # noqa: B006 - typer copies it
    assignments: Annotated[
        list[str],
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="A field of [prompts] or [evaluate] (repeatable)."),
    ] = [],  # noqa: B006
) -> None:
    """Measure a model that any tool made, beside the base model that it was made from."""
    with _sentences("the same command goes on after the last model that was judged."):
        _quiet()
        from expunge import report as page
        from expunge.audit import Audit
        from expunge.cli.progress import RunProgress
        from expunge.cli.tables import evaluation_table

        audit = Audit.create(
            out, model=model, base=base, protocol=protocol, forgotten=forgotten, changes=_changes(assignments)
        )
        with RunProgress(console) as progress:
            summary = audit.evaluate(progress)
        console.print(evaluation_table(summary))
        console.print(f"Pictures and figures: {page.write_evaluation(audit)}", highlight=False)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run, or a folder of `expunge evaluate`.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one, of the same base model and protocol.")],
    out: Annotated[Path, typer.Option(help="An HTML file.")] = Path("compare.html"),
) -> None:
    """Put two runs side by side: pictures at equal prompts and seeds, paired differences."""
    with _sentences():
        _quiet()
        from expunge import audit
        from expunge import report as page
        from expunge.cli.tables import comparison_table

        found = audit.compare(a, b)
        console.print(comparison_table(found))
        console.print(f"Pictures and figures: {page.write_comparison(found, out)}", highlight=False)


@app.command()
def bench(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An experiment file, e.g. benchmarks/ablation/main.toml.")
    ],
    only: Annotated[list[str], typer.Option(metavar="VARIANT", help="Serve this variant alone (repeatable).")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Serve this seed alone (repeatable).")] = [],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Folder of unfinished runs.")] = Path("runs/bench"),
    write: Annotated[
        Path | None, typer.Option(help="Serve nothing: write table and figures of the results so far into this folder.")
    ] = None,
) -> None:
    """Serve the sequences of an experiment that have no results yet; results lie in the folder named like FILE."""
    with _sentences():
        _quiet()
        from expunge.benchmark import Experiment, last_steps, serve_variant
        from expunge.cli.progress import RunProgress
        from expunge.cli.tables import experiment_table

        experiment, results = Experiment.read(file), file.with_suffix("")
        if write is not None:
            _write_experiment(experiment, results, write / file.stem)
            return
        for number in seed or experiment.seeds:
            for name in only or experiment.variants:
                with RunProgress(console) as progress:
                    serve_variant(experiment, name, number, results, work / file.stem, progress)
                console.print(f"{name}, seed {number}: done", highlight=False)
        console.print(experiment_table(last_steps(results)))


def _write_experiment(experiment: Experiment, results: Path, stem: Path) -> None:
    """`STEM-table.md`, and the figures `STEM-outcomes.png`, `STEM-sequence.png`, and over a knob `STEM-matched.png`."""
    from expunge.benchmark import at_matched_forgetting, figures, last_steps, markdown
    from expunge.files import write_text

    table = last_steps(results)
    if table.empty:
        raise ExpungeError(f"{results} holds no results yet. Without --write, the command serves the sequences.")
    notes = {name: variant.note for name, variant in experiment.variants.items()}
    table = table[table["variant"].isin(list(notes))]
    shown = [name for name in notes if name in set(table["variant"])]
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_text(stem.with_name(f"{stem.name}-table.md"), markdown(table, shown[0], notes))
    figures.after_the_last_step(table, shown, stem.with_name(f"{stem.name}-outcomes.png"))
    figures.over_the_sequence(results, shown[:5], stem.with_name(f"{stem.name}-sequence.png"))
    if any("@" in name for name in shown):
        figures.retention_over_forgetting(table, MATCHED_UA, stem.with_name(f"{stem.name}-matched.png"))
        for metric in ("ira", "cra"):
            found = at_matched_forgetting(table, metric, MATCHED_UA).groupby("family", sort=False)[metric]
            for family, values in found:
                read = (
                    f"{values.mean():.3f} (seeds {values.count()})" if values.count() else "not reached, or never below"
                )
                console.print(f"{family}: {metric.upper()} at UA {MATCHED_UA}: {read}", highlight=False)
    console.print(f"Written: {stem}-*", highlight=False)


@app.command()
def request(path: RunPath, concepts: Concepts) -> None:
    """Append one request that names all CONCEPTs; `expunge resume` serves it."""
    with _sentences():
        from expunge.stream import Run

        added = Run(path).request(*concepts)
        console.print(f"Request {added.id} waits. `expunge resume {path}` serves it.", highlight=False)


@app.command()
def resume(path: RunPath) -> None:
    """Serve the open requests, going on where an interrupted step stood."""
    with _sentences():
        _quiet()
        from expunge.stream import Run

        _serve(Run(path))


@app.command()
def accept(
    path: RunPath,
    step: StepNumber,
    reason: Annotated[str, typer.Option(help="Why; kept in the events.")],
    by: By,
) -> None:
    """Make the model of a step current that the gate did not let pass."""
    with _sentences():
        from expunge.stream import Run

        found = Run(path)
        found.accept(step, by=by, reason=reason)
        _print_decision(found, f"Step {step} is accepted by hand: its model is current.")


@app.command()
def rollback(path: RunPath, step: StepNumber, by: By, reason: Reason = "") -> None:
    """Make the model of an earlier STEP current (0: the base model). Steps after it are withdrawn, and not served again."""
    with _sentences():
        from expunge.stream import Run

        found = Run(path)
        found.rollback(step, by=by, reason=reason)
        _print_decision(found, f"The model of step {step} is current." if step else "The base model is current.")


@app.command()
def withdraw(path: RunPath, step: StepNumber, by: By, reason: Reason = "") -> None:
    """Take back the request of STEP; the later ones are served again, from the step before it."""
    with _sentences():
        _quiet()
        from expunge.stream import Run

        found = Run(path)
        found.withdraw(step, by=by, reason=reason)
        console.print(f"Request {step:04d} is withdrawn.", highlight=False)
        _serve(found)


@app.command()
def verify(
    path: RunPath,
    head: Annotated[
        str | None, typer.Option(help="A head of the events that was kept elsewhere, e.g. in an export's card.")
    ] = None,
) -> None:
    """Recompute the chain of events and every digest, and whether the current model is what the steps say."""
    with _sentences():
        from expunge.stream import verify as look

        found = look(path, head)
        if found.problems:
            raise Tampered("\n".join(found.problems))
        console.print(
            f"{found.events} events and {found.steps} steps: every file is what the events say.\n"
            f"Current model: {found.weights or 'the base model'}\nHead: {found.head}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def status(path: RunPath) -> None:
    """List the requests of a run and what became of them."""
    with _sentences():
        from expunge.stream import Run

        _print_status(Run(path))


@app.command()
def report(path: RunPath) -> None:
    """Write RUN/report.html anew."""
    with _sentences():
        from expunge import report as page
        from expunge.stream import Run

        console.print(f"{page.write(Run(path))}", highlight=False)


@app.command()
def export(path: RunPath, folder: Annotated[Path, typer.Argument(metavar="FOLDER")]) -> None:
    """Write the current model as a Diffusers folder that loads without Expunge."""
    with _sentences():
        _quiet()
        from expunge.stream import Run

        Run(path).export(folder)
        console.print(f"{folder} loads with DiffusionPipeline.from_pretrained.", highlight=False)


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a built-in model, a Diffusers folder or a hub id.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    out: Annotated[Path, typer.Option(help="A PNG file.")] = Path("picture.png"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 25,
    guidance: Annotated[float, typer.Option(min=1.0)] = 3.0,
) -> None:
    """Paint one picture."""
    with _sentences():
        if not prompt.strip():
            raise ExpungeError("The prompt is blank. Say what to paint.")
        _quiet()
        from expunge.stream import paint_one

        paint_one(model, prompt, seed=seed, steps=steps, guidance=guidance).save(out)
        console.print(f"{out}", highlight=False)


def _serve(run: Run) -> None:
    from expunge import report as page
    from expunge.cli.progress import RunProgress
    from expunge.stream import gate

    served = []
    with RunProgress(console) as progress:
        for record in run.serve(progress):
            page.write(run)
            served.append(record)
    if not served and run.records:  # a process that was killed may have left the page a step behind
        page.write(run)
    _print_status(run)
    if run.directory.report.exists():
        console.print(f"Pictures and figures: {run.directory.report}", highlight=False)
    if served and served[-1].status == "rejected":
        raise GateFailed(gate.verdict(served[-1].index, served[-1].attempts, str(run.directory.path)))


def _print_decision(run: Run, sentence: str) -> None:
    from expunge import report as page

    if run.records:
        page.write(run)
    _print_status(run)
    console.print(sentence, highlight=False)


def _print_status(run: Run) -> None:
    from expunge.cli.tables import status_table

    console.print(status_table(run))
