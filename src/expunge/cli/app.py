"""The commands. Exit codes: 0 done, 1 a gate or a verification failed, 2 bad usage or input, 3 interrupted (resumable)."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import bench
from expunge.cli.shared import Set, changes_of, console, sentences
from expunge.errors import ExpungeError, GateFailed, Tampered

if TYPE_CHECKING:
    from expunge.stream import Run

app = typer.Typer(
    help="Remove concepts from text-to-image diffusion models, one deletion request after another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench.app, name="bench")

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")]
Concepts = Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="Concepts to forget, one request each.")]
Together = Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="Concepts to forget, in one request.")]
StepNumber = Annotated[int, typer.Argument(metavar="STEP", min=0, help="Its number, which is that of its request.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the events.")]


def _user() -> str:
    """Who calls; in a container that may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


By = Annotated[str, typer.Option(help="Who decides it; kept in the events.", default_factory=_user)]


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
    """Make a run, and serve one request for each CONCEPT. The same command again goes on where an interrupted one stood."""
    with sentences():
        from expunge.stream import DEFAULT_PRESET, Run

        changes = _changes(assignments, model, protocol)
        _serve(Run.create(path, requests=concepts, preset_name=preset or DEFAULT_PRESET, changes=changes))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The run's directory.")] = Path("runs/demo")) -> None:
    """Serve the requests of the protocol iconworld-demo on the built-in model, and write a page about it."""
    with sentences():
        from expunge.iconworld import protocol
        from expunge.stream import Run

        name = "iconworld-demo"
        requests = protocol(name).requests
        _serve(Run.create(out, requests=requests, changes={"evaluate": {"protocol": name}}))


@app.command()
def estimate(
    concepts: Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="Concepts, one request each.")],
    preset: Annotated[str | None, typer.Option(help="As in `expunge run`.")] = None,
    model: Annotated[str | None, typer.Option(help="As in `expunge run`.")] = None,
    protocol: Annotated[str | None, typer.Option(help="As in `expunge run`.")] = None,
    assignments: Set = [],  # noqa: B006
) -> None:
    """Say what a run would cost on this machine: seconds, memory, disk. Nothing is made."""
    with sentences("nothing was made."):
        from expunge import stream
        from expunge.cli.tables import estimate_table

        config = stream.preset(preset or stream.DEFAULT_PRESET, _changes(assignments, model, protocol))
        with console.status("Rehearsing ..."):
            found = stream.estimate(config, [[name] for name in concepts])
        console.print(estimate_table(found))


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
        # Typer reads help as Rich's markup, in which an open bracket is escaped.
        typer.Option(
            "--set", metavar="SECTION.FIELD=VALUE", help=r"A field of \[prompts] or \[evaluate] (repeatable)."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Measure a model that any tool made, beside the base model that it was made from."""
    with sentences("the same command goes on after the last model that was judged."):
        from expunge import report as page
        from expunge.audit import Audit
        from expunge.cli.progress import RunProgress
        from expunge.cli.tables import evaluation_table

        audit = Audit.create(
            out, model=model, base=base, protocol=protocol, forgotten=forgotten, changes=changes_of(assignments)
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
    with sentences():
        if out.suffix != ".html" or out.is_dir():
            raise ExpungeError(f"{out} is no HTML file. Give a name that ends in .html.")
        from expunge import audit
        from expunge import report as page
        from expunge.cli.tables import comparison_table

        found = audit.compare(a, b)
        console.print(comparison_table(found))
        console.print(f"Pictures and figures: {page.write_comparison(found, out)}", highlight=False)


@app.command()
def request(path: RunPath, concepts: Together) -> None:
    """Append one request that names all CONCEPTs; `expunge resume` serves it."""
    with sentences():
        from expunge.stream import Run

        added = Run(path).request(*concepts)
        console.print(f"Request {added.id} waits. `expunge resume {path}` serves it.", highlight=False)


@app.command()
def resume(
    path: RunPath,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Most rows or pictures at once, where memory ran out.")
    ] = None,
) -> None:
    """Serve the open requests, going on where an interrupted step stood."""
    with sentences():
        from expunge.stream import Run

        _serve(Run(path), batch)


@app.command()
def accept(
    path: RunPath,
    step: StepNumber,
    reason: Reason,
    by: By,
) -> None:
    """Make the model of a step current that the gate did not let pass."""
    with sentences():
        from expunge.stream import Run

        found = Run(path)
        found.accept(step, by=by, reason=reason)
        _print_decision(found, f"Step {step} is accepted by hand: its model is current.")


@app.command()
def rollback(path: RunPath, step: StepNumber, by: By, reason: Reason = "") -> None:
    """Make the model of an earlier STEP current (0: the base model). Steps after it are withdrawn, and not served again."""
    with sentences():
        from expunge.stream import Run

        found = Run(path)
        found.rollback(step, by=by, reason=reason)
        _print_decision(found, f"The model of step {step} is current." if step else "The base model is current.")


@app.command()
def withdraw(path: RunPath, step: StepNumber, by: By, reason: Reason = "") -> None:
    """Take back the request of STEP; the later ones are served again, from the step before it."""
    with sentences():
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
    with sentences():
        from expunge.stream import verify as look

        found = look(path, head)
        if found.problems:
            raise Tampered("\n".join(found.problems))
        console.print(
            f"{found.events} events, {found.steps} step{'s' if found.steps != 1 else ''}: every file is what the events say.\n"
            f"Current model: {found.weights or 'the base model'}\nHead: {found.head}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def status(path: RunPath) -> None:
    """List the requests of a run and what became of them."""
    with sentences():
        from expunge.stream import Run

        _print_status(Run(path))


@app.command()
def report(path: RunPath) -> None:
    """Write RUN/report.html anew."""
    with sentences():
        from expunge import report as page
        from expunge.stream import Run

        console.print(f"{page.write(Run(path))}", highlight=False)


@app.command()
def export(
    path: RunPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or an earlier export to replace.")],
    redacted: Annotated[
        bool, typer.Option("--redacted/--no-redacted", help="Whether the model card leaves persons unnamed.")
    ] = True,
) -> None:
    """Write the current model as a Diffusers folder that loads without Expunge, with a model card."""
    with sentences():
        from expunge.stream import Run

        Run(path).export(folder, redacted=redacted)
        console.print(f"{folder} loads with DiffusionPipeline.from_pretrained.", highlight=False)


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a built-in model, a Diffusers folder or a hub id.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    out: Annotated[Path, typer.Option(help="A PNG file.")] = Path("picture.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 25,
    guidance: Annotated[float, typer.Option(min=1.0)] = 3.0,
) -> None:
    """Paint one picture."""
    with sentences():
        if not prompt.strip():
            raise ExpungeError("The prompt is blank. Say what to paint.")
        if out.suffix != ".png" or out.is_dir() or not out.parent.is_dir():
            raise ExpungeError(f"{out} is no PNG file in a folder that is there. Give a name that ends in .png.")
        from expunge.stream import paint_one

        paint_one(model, prompt, seed=seed, steps=steps, guidance=guidance).save(out)
        console.print(f"{out}", highlight=False)


def _changes(assignments: list[str], model: str | None, protocol: str | None) -> dict[str, Any]:
    changes = changes_of(assignments)
    if model is not None:
        changes.setdefault("model", {})["source"] = model
    if protocol is not None:
        changes.setdefault("evaluate", {})["protocol"] = protocol
    return changes


def _serve(run: Run, batch: int | None = None) -> None:
    from expunge import report as page
    from expunge.cli.progress import RunProgress
    from expunge.stream import gate

    if not run.decides:  # beside the process that writes and prints
        run.resume(batch=batch)
        return
    served = []
    with RunProgress(console) as progress:
        for record in run.serve(progress, batch):
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
