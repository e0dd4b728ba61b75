"""Wrong use is answered with a sentence and exit code 2, before any model is loaded, and nothing is made or lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from expunge import ExpungeError, Run, backbones, iconworld
from expunge.files import write_bytes
from expunge.stream import preset
from expunge.stream.named import check_requested, model_folder, read_protocol
from handmade import FOX, NEON, add_step, begin, check
from runs import FAST, PROTOCOL, expunge

PROMPTS = PROTOCOL.parent / "prompts"
VOCABULARY = iconworld.HERE / "vocabulary.toml"

FOLDER = ("--set", "prompts.source=folder", "--set", "prompts.folder={}/prompts")

Spoil = Callable[[Path], None]
"""Changes what lies in a place: `run` (the fox is forgotten, neon waits), `prompts`, `model`, `outside` and files."""


@dataclass(frozen=True)
class Case:
    """A command ({} is the place), and a telling part of the sentence that answers it."""

    command: tuple[str, ...]
    sentence: str
    spoil: Spoil = lambda place: None


def making(*arguments: str, says: str, spoil: Spoil = lambda place: None) -> Case:
    """`expunge run` on a folder that is not there."""
    return Case(("run", "{}/new", *arguments, *FAST), says, spoil)


def setting(assignment: str, says: str) -> Case:
    return Case(("run", "{}/new", "fox", *FAST, "--set", assignment), says)


def written(file: str, data: str | bytes) -> Spoil:
    return lambda place: write_bytes(place / file, data if isinstance(data, bytes) else data.encode())


def with_file(option: str, data: str | bytes, says: str) -> Case:
    """`expunge run` with a file of one's own; `option` is --preset, --protocol, or a field."""
    given = (option, "{}/mine.toml") if option.startswith("--") else ("--set", f"{option}={{}}/mine.toml")
    more = FOLDER if option == "prompts.concepts" else ()
    return Case(("run", "{}/new", "fox", *FAST, *more, *given), says, written("mine.toml", data))


def with_prompts(changes: dict[str, str | bytes], says: str) -> Case:
    """`expunge run` with a folder of prompts in which files of the golf ball are others."""

    def spoil(place: Path) -> None:
        for name, data in changes.items():
            written(f"prompts/golf_ball/{name}", data)(place)

    return making("golf ball", *FOLDER, says=says, spoil=spoil)


def edited(file: str, old: str, new: str) -> Spoil:
    def spoil(place: Path) -> None:
        text = (place / file).read_text()
        assert old in text
        (place / file).write_text(text.replace(old, new, 1))

    return spoil


def moved_out(name: str) -> Spoil:
    """A part of the run is elsewhere, with a link in its place."""

    def spoil(place: Path) -> None:
        (place / "run" / name).rename(place / "outside" / "part")
        (place / "run" / name).symlink_to(place / "outside" / "part")

    return spoil


def pickled(place: Path) -> None:
    built_in = iconworld.model_folder("iconworld")
    assert built_in
    shutil.copytree(built_in, place / "model" / built_in.name)
    for path in (place / "model" / built_in.name / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def toml(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    return text.replace(old, new, 1)


LATIN = "# café\n".encode("latin-1")
NEWER = "newer version of Expunge"
LEAVES = "is a link that leads out of the run"
CHANGED = edited("run/run.toml", "steps = 12", "steps = 7")
DIFFERENCE = "train.steps is 7 and was 12"

CASES = {
    # concepts
    "unknown concept": making("foxx", says="Did you mean fox"),
    "unknown concept in a request": Case(("request", "{}/run", "foxx"), "Did you mean fox"),
    "blank concept": making("  ", says="a concept needs a name with at least one letter or digit"),
    "empty concept": Case(("request", "{}/run", ""), "a concept needs a name"),
    "duplicate request": making("fox", "fox", says="'fox' is requested twice"),
    "duplicate request by an alias": making("rabbit", "bunny", says="'rabbit' is requested twice"),
    "duplicate in a request": Case(("request", "{}/run", "owl", "owl"), "'owl' is requested twice"),
    "a concept that waits already": Case(("request", "{}/run", "neon"), "'neon' is already requested (request 0002)"),
    "a concept already forgotten": Case(("request", "{}/run", "fox"), "'fox' is already forgotten (request 0001)"),
    # names
    "a name with slashes": making("../../fox/den", says="has no concept '../../fox/den'. Known: apple"),
    "a name with control characters": making("fox\x1b[31m", says=r"'fox\x1b[31m' cannot be a concept's name: the char"),
    "a name with an override of direction": making("\u202exof", says="the character U+202E cannot be printed"),
    "a name that is no UTF-8": making("fox\udce4", says="the character U+DCE4 cannot be printed"),
    "a name of 10,000 characters": making("x" * 10_000, says="at most 200 characters, not 10000"),
    "an unknown name of 200 characters": making("x" * 200, says=f"has no concept '{'x' * 60}…'"),
    "emoji without a word": making(
        "🦊", says="'🦊' cannot be a concept's name: a concept needs a name with at least one"
    ),
    "an unknown name from right to left": making("ثعلب", says="has no concept 'ثعلب'"),
    "a path with control characters": Case(("status", "{}/\x1b[31mred"), r"\x1b[31mred holds no run"),
    "a path of 10,000 characters": Case(("run", "{}/" + "x" * 10_000, "fox", *FAST), "File name too long"),
    "a preset of 10,000 characters": Case(("run", "{}/new", "fox", "--preset", "x" * 10_000), "File name too long"),
    # prompts
    "a seed that no generator takes": Case(
        ("generate", "iconworld", "a fox", "--seed", f"{2**63}"), "Invalid value for '--seed'"
    ),
    "blank prompt": Case(("generate", "iconworld", " ", "--out", "{}/picture.png"), "The prompt is blank"),
    "blank prompt in a file": with_prompts({"train.csv": "id,prompt\n1,  \n"}, "train.csv:2: this line has no prompt"),
    "empty prompts": with_prompts(
        {"train.csv": "id,prompt\n", "candidates_clip.json": "[]"}, "has no forget prompt for 'golf ball'"
    ),
    "no retain prompts": with_prompts({"related_score.txt": "\n \n"}, "has no retain prompt for 'golf ball'"),
    "a retain prompt that leaks": with_prompts(
        {"related_score.txt": "\nGolf balls in a row\n"}, "related_score.txt:2: 'Golf balls in a row' leaks 'golf ball'"
    ),
    "a mapping that a folder cannot write": making(
        "golf ball",
        *FOLDER,
        "--set",
        "method.mapping=superclass",
        says="No mapping candidate of 'golf ball' in",
    ),
    "a mapping target for another kind": making(
        "fox",
        "--set",
        "method.mapping=fixed",
        "--set",
        "method.mapping_target={style='neon'}",
        says="mapping_target names nothing for 'object', the kind of 'fox'",
    ),
    "a mapping target that is held out": making(
        "fox",
        "--set",
        "method.mapping=fixed",
        "--set",
        "method.mapping_target={object='bear'}",
        says="maps 'fox' to 'bear', which speaks of 'bear', and that is held out",
    ),
    "a mapping target that is asked to go": making(
        "fox",
        "dog",
        "--set",
        "method.mapping=fixed",
        "--set",
        "method.mapping_target={object='dog'}",
        says="maps 'fox' to 'dog', which speaks of 'dog', and that is asked to go",
    ),
    "a mapping target with an article": making(
        "fox",
        "--set",
        "method.mapping=fixed",
        "--set",
        "method.mapping_target={object='an apple'}",
        says="mapping_target is 'an apple'; leave out the article",
    ),
    "a prompts file that is no UTF-8": with_prompts({"related_score.txt": LATIN}, "related_score.txt cannot be read"),
    "no prompts at all": making(
        "fox", "--set", "prompts.source=folder", "--set", "prompts.folder={}/outside", says="holds no prompts"
    ),
    # files that are no UTF-8
    "a preset that is no UTF-8": with_file("--preset", LATIN, "mine.toml cannot be used: it is not UTF-8 text"),
    "a protocol that is no UTF-8": with_file("--protocol", LATIN, "mine.toml cannot be used: it is not UTF-8 text"),
    "a vocabulary that is no UTF-8": with_file("prompts.vocabulary", LATIN, "it is not UTF-8 text (byte 5)"),
    "concepts that are no UTF-8": with_file("prompts.concepts", LATIN, "it is not UTF-8 text"),
    "a run.toml that is no UTF-8": Case(("resume", "{}/run"), "it is not UTF-8 text", written("run/run.toml", LATIN)),
    "a protocol that writes a name in its own way": with_file(
        "--protocol", toml(PROTOCOL, '["bear"]', '["Bear"]'), "says 'Bear', and the prompt source 'bear'. Write 'bear'."
    ),
    # an alias that is a confusable
    "alias that equals a confusable": with_file(
        "prompts.vocabulary",
        toml(VOCABULARY, "[aliases]\n", '[confusables]\nrabbit = ["Bunny"]\n[aliases]\n'),
        "'Bunny' is both a name of 'rabbit' and a confusable that must not count as it",
    ),
    "alias that equals a confusable in a concepts file": with_file(
        "prompts.concepts",
        'schema = 1\n[[concepts]]\nname = "fox"\naliases = ["vixen"]\nconfusables = ["Vixen"]\n',
        "'Vixen' is both a name of 'fox' and a confusable that must not count as it",
    ),
    # models
    "a model folder that is not there": making("fox", "--model", "./nowhere", says="is no folder, and no hub id"),
    "a model folder that is no pipeline": making("fox", "--model", "{}/model", says="holds no model_index.json"),
    "an index that is no pipeline's": making(
        "fox", "--model", "{}/model", says="is not a pipeline's index", spoil=written("model/model_index.json", "[]")
    ),
    "an unsupported pipeline class": making(
        "fox",
        "--model",
        "{}/model",
        says="is a FluxPipeline, which is not supported yet. Supported: StableDiffusion",
        spoil=written("model/model_index.json", '{"_class_name": "FluxPipeline"}'),
    ),
    "pickled weights": making(
        "fox", "--model", "{}/model/iconworld-1", says="Pickled weights are not opened", spoil=pickled
    ),
    "a run from another model digest": Case(("resume", "{}/run"), "is not the model that this run began with"),
    "an export from another model digest": Case(
        ("export", "{}/run", "{}/new"), "is not the model that this run began with"
    ),
    # numbers and fields
    "a dtype that the device lacks": setting("train.precision=fp16", "precision fp16 needs a CUDA GPU"),
    "a dtype that the device lacks, for pictures": setting("evaluate.precision=fp16", "needs a CUDA GPU"),
    "a dtype that there is not": setting("train.precision=fp8", "train.precision: Input should be 'auto', 'fp32'"),
    "no steps": setting("train.steps=0", "train.steps: Input should be greater than or equal to 1"),
    "absurdly many steps": setting("train.steps=1000000000000", "train.steps: Input should be less than or equal to"),
    "half a step": setting("train.steps=2.5", "train.steps: Input should be a valid integer"),
    "a negative learning rate": setting(
        "train.learning_rate=-1", "train.learning_rate: Input should be greater than 0"
    ),
    "an absurd learning rate": setting("train.learning_rate=1e9", "train.learning_rate: Input should be less than"),
    "a learning rate that is no number": setting("train.learning_rate=nan", "train.learning_rate: Input should be"),
    "an infinite strength": setting("method.strength=inf", "strength: Input should be"),
    "betas that are none": setting("train.betas=[2, 3]", "train.betas.0: Input should be less than 1"),
    "absurdly many prompts": setting("method.forget_prompts=1000000000", "forget_prompts: Input should be less than"),
    "no retain prompts to draw": setting("method.retain_prompts=0", "retain_prompts: Input should be greater than"),
    "a share above one": setting("gate.forget=2", "gate.forget: Input should be less than or equal to 1"),
    "a negative seed": setting("seed=-1", "seed: Input should be greater than or equal to 0"),
    "an absurd seed": setting("seed=99999999999999999999", "seed: Input should be less than"),
    "a number in a protocol": with_file(
        "--protocol", toml(PROTOCOL, "steps = 2", "steps = -2"), "sampler.steps: Input should be greater than or equal"
    ),
    "absurd guidance": Case(
        ("generate", "iconworld", "a fox", "--guidance", "1000", "--out", "{}/picture.png"), "guidance: Input should be"
    ),
    "a negative number of a command": Case(
        ("generate", "iconworld", "a fox", "--steps", "-1", "--out", "{}/picture.png"), "Invalid value for '--steps'"
    ),
    "a picture that is no PNG": Case(
        ("generate", "iconworld", "a fox", "--out", "{}/picture.tex"), "Give a name that ends in .png"
    ),
    "a picture in the place of a folder": Case(
        ("generate", "iconworld", "a fox", "--out", "{}/folder.png"),
        "Give a name that ends in .png",
        lambda place: (place / "folder.png").mkdir(parents=True),
    ),
    "unknown field": setting("train.stepps=3", "There is no field 'train.stepps'. Did you mean steps"),
    "unknown field of the method": setting("method.strenght=3", "There is no field 'strenght'. Did you mean strength"),
    "unknown section": setting("trian.steps=3", "There is no field 'trian'. Did you mean train"),
    "unknown field in a preset": with_file(
        "--preset", "schema = 1\n[gate]\nforgot = 1\n", "no field 'gate.forgot'. Did you mean forget"
    ),
    "unknown field in a protocol": with_file(
        "--protocol", toml(PROTOCOL, "seed = 1", "seed = 1\nseeed = 2"), "no field 'seeed'. Did you mean seed"
    ),
    "unknown field in a vocabulary": with_file("prompts.vocabulary", "template = 1\n", "Did you mean templates"),
    "unknown field in a concepts file": with_file(
        "prompts.concepts", '[[concepts]]\nname = "fox"\nalias = ["x"]\n', "'concepts.0.alias'. Did you mean aliases"
    ),
    "no assignment": setting("steps", "is not SECTION.FIELD=VALUE"),
    "a method that is no name": setting("method.name=3", "method is a table with a name"),
    "a constraint that is no name": with_file("--preset", "[[constraints]]\nname = 3\n", "There is no constraint '3'"),
    "a section that is no table": Case(
        ("run", "{}/new", "fox", "--preset", "{}/mine.toml"),
        "model: Input should be a valid dictionary",
        written("mine.toml", "model = 3\n"),
    ),
    "unknown method": setting("method.name=lacuu", "Did you mean lacu"),
    "unknown parameter group": setting("train.parameters=attn", "no parameter group 'attn'"),
    "unknown preset": Case(("run", "{}/new", "fox", "--preset", "lacu"), "There is no preset 'lacu'"),
    "unknown protocol": Case(("run", "{}/new", "fox", "--protocol", "iconworld-dmo"), "Did you mean iconworld-demo"),
    # runs
    "no run": Case(("resume", "{}/outside"), "holds no run"),
    "a run where something is": Case(("run", "{}/run", "fox", *FAST), "is not empty"),
    "a run where a file is": Case(("run", "{}/run/run.toml", "fox", *FAST), "Not a directory"),
    "a changed frozen part": Case(("resume", "{}/run"), DIFFERENCE, CHANGED),
    "a request to a run that was changed": Case(("request", "{}/run", "panda"), DIFFERENCE, CHANGED),
    "an export of a run that was changed": Case(("export", "{}/run", "{}/new"), DIFFERENCE, CHANGED),
    "a decision about a run that was changed": Case(("rollback", "{}/run", "0"), DIFFERENCE, CHANGED),
    "a frozen part that is gone": Case(
        ("resume", "{}/run"), "train.steps is not there and was 12", edited("run/run.toml", "steps = 12\n", "")
    ),
    "a newer run": Case(("resume", "{}/run"), NEWER, edited("run/run.toml", "schema = 1", "schema = 2\nwhat = 1")),
    "a newer step": Case(
        ("status", "{}/run"), NEWER, edited("run/steps/0001/step.json", '"schema": 1', '"schema": 2, "what": 1')
    ),
    "a newer summary": Case(("report", "{}/run"), NEWER, edited("run/summary.json", '"schema": 1', '"schema": 3')),
    "a newer preset": with_file("--preset", "schema = 2\nwhat = 1\n", "has schema 2, and this version knows schema 1"),
    "a newer protocol": with_file("--protocol", "schema = 2\nwhat = 1\n", NEWER),
    "a newer vocabulary": with_file("prompts.vocabulary", "schema = 2\nwhat = 1\n", NEWER),
    "a newer concepts file": with_file("prompts.concepts", "schema = 2\nwhat = 1\n", NEWER),
    "a newer experiment": Case(("bench", "{}/mine.toml"), NEWER, written("mine.toml", "schema = 2\nwhat = 1\n")),
    # links
    "steps that leave the run": Case(("resume", "{}/run"), LEAVES, moved_out("steps")),
    "a step that leaves the run": Case(("export", "{}/run", "{}/new"), LEAVES, moved_out("steps/0001")),
    "a base that leaves the run": Case(("withdraw", "{}/run", "2"), LEAVES, moved_out("base")),
    "events that leave the run": Case(("request", "{}/run", "panda"), LEAVES, moved_out("events.jsonl")),
    "a link that leads nowhere": Case(
        ("resume", "{}/run"), LEAVES, lambda place: (place / "run/base/more").symlink_to(place / "outside/nothing")
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that forgot the fox, and in which neon waits. Its base model is another than the built-in one."""
    place = tmp_path_factory.mktemp("runs")
    changes = {"evaluate": {"protocol": str(PROTOCOL)}, "train": {"steps": 12}}
    directory, base = begin(place / "run", FOX, NEON, changes=changes)
    add_step(directory, directory.requests()[0], base, ["fox"], [check("ua of fox", 1.0, 0.8)])
    Run(directory.path).rollback(1, by="me")  # where it is anyway: this writes the summary
    return directory.path


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(PROMPTS, tmp_path / "prompts")
    for name in ("model", "outside"):
        (tmp_path / name).mkdir()
    return tmp_path


def tree(place: Path) -> dict[str, bytes]:
    """Everything in a place, byte for byte; locks say nothing."""
    return {
        str(p.relative_to(place)): str(p.readlink()).encode()
        if p.is_symlink()
        else p.read_bytes()
        if p.is_file()
        else b""
        for p in place.rglob("*")
        if "lock" not in p.name
    }


@pytest.mark.filterwarnings("ignore:These prompts are left out")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_sentence_an_exit_code_and_nothing_lost(case: Case, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backbones, "load", lambda folder: pytest.fail("a model was loaded"))
    case.spoil(place)
    before = tree(place)
    said = expunge(*(part.replace("{}", str(place)) for part in case.command), code=2)
    assert case.sentence in said
    assert "Traceback" not in said
    assert said.isprintable()
    assert len(said) < 2000
    assert tree(place) == before


def test_a_protocol_may_speak_of_requests_that_the_source_does_not_know_yet(place: Path) -> None:
    (place / "mine.toml").write_text(toml(PROTOCOL, 'requests = [["panda"]', 'requests = [["zeppelin"], ["panda"]'))
    text = (place / "mine.toml").read_text()
    (place / "mine.toml").write_text(text + '[neighbours.zeppelin]\nheld_out = ["bear"]\nreplayed = []\n')
    config = preset("lacu-iconworld", {"evaluate": {"protocol": str(place / "mine.toml")}})
    folder = model_folder("iconworld")
    for asked, code in ((["panda"], None), (["zeppelin"], "has no concept 'zeppelin'")):
        with pytest.raises(ExpungeError, match=code) if code else nullcontext():
            check_requested(config, iconworld.vocabulary(), read_protocol(config.evaluate.protocol), folder, [asked])


def test_a_leak_that_is_left_out_is_said_in_a_sentence(place: Path) -> None:
    source = (part.replace("{}", str(place)) for part in FOLDER)
    said = expunge("run", place / "new", "golf bal", *source, *FAST, code=2)
    assert "related_score.txt:6: 'Somebody collects golf balls' leaks 'golf ball'." in said
    assert "Warning" not in said
    assert "no prompts for 'golf bal'. Did you mean golf ball" in said


def test_the_comparison_sees_what_right_use_makes(place: Path) -> None:
    before = tree(place)
    expunge("request", place / "run", "panda")
    assert {name for name, data in tree(place).items() if before.get(name) != data} == {
        "run/requests.jsonl",
        "run/events.jsonl",
        "run/events.head",
    }


@pytest.mark.parametrize("name", ["AC/DC", "../../fox", "狐 🦊", "ثعلب أحمر", "fox 👩\u200d🚀", " fox \n", "Füchse"])
def test_names_of_any_script_are_fine_and_no_path_has_one(name: str, place: Path) -> None:
    """A source that knows a name may be asked for it: words count, and other signs are no part of a path."""
    words = place / "words.toml"
    known = ["AC/DC", "狐 🦊", "ثعلب أحمر", "Füchse"]
    words.write_text(toml(VOCABULARY, "[aliases]\n", f"[aliases]\nfox = {json.dumps(known, ensure_ascii=False)}\n"))
    changes = {"prompts": {"vocabulary": str(words)}, "evaluate": {"protocol": str(PROTOCOL)}}
    run = Run.create(place / "new", changes=changes)
    before = tree(place).keys()
    expunge("request", place / "new", name)
    assert [c.name for r in run.requests for c in r.concepts] == ["fox"]
    assert tree(place).keys() - before == {"new/requests.jsonl"}
