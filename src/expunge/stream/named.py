"""What a configuration names (a model, a prompt source, a protocol, a judge), and whether these fit together.

Nothing here reads weights: what does not fit is said before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from expunge import backbones, iconworld
from expunge.backbones import Backbone
from expunge.concepts import Concept, alike, check_name, mentions
from expunge.errors import ExpungeError, quoted
from expunge.evaluation import Judge, Protocol, find_judge, protocol_rows
from expunge.hardware import compute_dtype
from expunge.methods.mapping import MappingConfig, single_target
from expunge.prompts import FolderConfig, KnownConcepts, LlmConfig, LlmPrompts, PromptFolder, PromptSource, Vocabulary
from expunge.stream.config import PromptsConfig, RunConfig
from expunge.stream.gate import check_reachable

WARM_STARTED = ("full", "cross-attention", "cross-attention-kv")
"""Parameter groups that hold the weights a warm start changes."""
_JUDGES: dict[str, Callable[[], Judge]] = {"iconworld": iconworld.judge}
"""Judges that come with Expunge, beside those that are written PREFIX:MODEL (`expunge.evaluation.judges`)."""


def model_folder(source: str) -> Path:
    """The pipeline folder that a built-in name, a folder or a hub id means."""
    return iconworld.model_folder(source) or backbones.locate(source)


def model_name(source: str, folder: Path) -> str:
    """A hub model is called by its id (its folder is named after a commit), any other by its folder."""
    hub = iconworld.model_folder(source) is None and not Path(source).expanduser().exists()
    return source if hub else folder.name


def prompt_source(config: PromptsConfig) -> PromptSource:
    match config:
        case FolderConfig(folder=folder, concepts=concepts):
            return PromptFolder(Path(folder), KnownConcepts.read(concepts))
        case LlmConfig() as llm:
            return LlmPrompts(llm, KnownConcepts.read(llm.concepts))
        case _:
            name = config.vocabulary
            return iconworld.vocabulary() if name == "iconworld" else Vocabulary.read(Path(name))


def read_protocol(name: str) -> Protocol:
    """A protocol file, or a protocol that comes with Expunge."""
    return Protocol.read(Path(name)) if name.endswith(".toml") else iconworld.protocol(name)


def judge_called(name: str) -> Judge:
    """A judge that comes with Expunge, or PREFIX:MODEL. Reads no weights."""
    return find_judge(name, _JUDGES)


def forgettable(source: PromptSource, name: str) -> Concept:
    """The concept `name`, for which the source has prompts: said when it is asked for, not when its turn comes."""
    try:
        check_name(name)
    except ValueError as error:
        raise ExpungeError(f"{quoted(name)} cannot be a concept's name: {error}.") from error
    concept = source.concept(name)
    source.related(concept)
    return concept


def check_config(config: RunConfig, folder: Path) -> None:
    """All that can be known to fail before anything is loaded."""
    backbone = backbones.backbone_class(folder)
    backbones.check(folder)
    compute_dtype(config.train.precision)
    compute_dtype(config.evaluate.precision)
    backbone.pattern_of(config.train.parameters)
    check_warm_start(config, backbone)
    check_protocol(read_protocol(config.evaluate.protocol), model_name(config.model.source, folder), backbone)
    backbone.check_solver(config.replay.solver)


def check_warm_start(config: RunConfig, backbone: type[Backbone]) -> None:
    """Whether the weights that a warm start changes are there, and are trained on."""
    if not config.method.get("warm_start"):
        return
    if not backbone.text_map_names:
        raise ExpungeError(
            f"{backbone.__name__} does not read prompts through linear maps of their own, which a warm start solves for. "
            "Set method.warm_start=false."
        )
    if config.train.parameters not in WARM_STARTED:
        raise ExpungeError(
            f"A warm start changes keys and values of cross-attention, and train.parameters is {config.train.parameters!r}. "
            f"Choose one of {', '.join(WARM_STARTED)}, or set method.warm_start=false."
        )


def check_protocol(protocol: Protocol, model: str, backbone: type[Backbone]) -> None:
    """Whether the protocol measures the model that is called `model`, with a solver that its family has."""
    if protocol.model != model:
        raise ExpungeError(
            f"The protocol {protocol.name} measures the model {protocol.model!r}, not {model!r}. Give a protocol "
            "that names your model (--protocol FILE.toml)."
        )
    backbone.check_solver(protocol.sampler.solver)


def check_requested(
    config: RunConfig,
    source: PromptSource,
    protocol: Protocol,
    folder: Path,
    requests: Sequence[Sequence[str]],
    before: Sequence[Concept] = (),
) -> list[tuple[Concept, ...]]:
    """The concepts of each of `requests`, which may be served one after another.

    Args:
        before: what was asked for already.

    Raises:
        ExpungeError: for a concept that is not known, or named twice, or that the method or the judge can do nothing with.
    """
    found = [tuple(forgettable(source, name) for name in names) for names in requests]
    asked = [concept for concepts in found for concept in concepts]
    names = [concept.name for concept in asked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExpungeError(f"{twice[0]!r} is requested twice. One request for it is enough.")
    check_mapped(config, source, protocol, asked, before)
    check_judged(protocol, source, asked, folder)
    return found


def check_gate(
    config: RunConfig, source: PromptSource, protocol: Protocol, requests: Sequence[Sequence[Concept]]
) -> None:
    """Whether the first of `requests` could pass the gate at all: on rows that show nothing else that was requested, all of
    them where it is also the last."""
    if requests:
        names = {concept.name for concepts in requests for concept in concepts}
        rows = [
            row
            for row in protocol_rows(protocol, source, requests[0])
            if (row.role == "forget" or names.isdisjoint(row.scene.values()))
            and (row.level == "between" or len(requests) == 1)
        ]
        check_reachable(config.gate, rows, protocol.name)


def check_mapped(
    config: RunConfig, source: PromptSource, protocol: Protocol, concepts: Sequence[Concept], before: Sequence[Concept]
) -> None:
    """Where the method maps `concepts` to one word: whether the source can write it, and whether it may be shown. Later steps
    re-steer concepts that were asked for `before`."""
    method = config.build_method().config
    if not isinstance(method, MappingConfig):
        return
    targets = {concept: target for concept in (*before, *concepts) if (target := single_target(method, concept))}
    for concept in concepts:
        if concept in targets:
            source.check_replacement(concept, targets[concept])
    held_out = [source.concept(name) for name in sorted(protocol.held_out)] if targets else []
    for concept, target in targets.items():
        for others, what in ((concepts, "asked to go"), (before, "asked to go"), (held_out, "held out")):
            if name := next((other.name for other in others if mentions(target, other)), None):
                raise ExpungeError(
                    f"The method maps {concept.name!r} to {target!r}, which speaks of {name!r}, and that is {what}. Choose "
                    "another mapping, or another mapping_target, in a new run."
                )


def check_judged(protocol: Protocol, source: PromptSource, concepts: Sequence[Concept], folder: Path) -> None:
    """Whether the protocol calls everything as the source does, and its judge can answer for every picture that `concepts`
    will lead to."""
    called = {name: source.concept(name).name for name in protocol.measured}
    called |= {n: c.name for c in concepts for n in protocol.neighbours if any(alike(n, own) for own in c.names)}
    for name, own in called.items():
        if own != name:
            raise ExpungeError(
                f"The protocol {protocol.name} says {name!r}, and the prompt source {own!r}. Write {own!r}."
            )
    rows = protocol_rows(protocol, source, concepts)
    judge_called(protocol.judge).check([row.question for row in rows], backbones.picture_size(folder))
