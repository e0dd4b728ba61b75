"""An export is whole or absent, takes the place of another export alone, and does not say who was forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from expunge import Run, backbones, iconworld
from expunge.concepts import Concept
from expunge.files import digest_folder
from expunge.stream.export import mark
from handmade import FOX, PERSON, add_step, begin, check
from runs import PROTOCOL, expunge

PASSED = [check("ua of fox", 1.0, 0.8)]
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that forgot the fox and a person. Pictures and notes that name the person lie beside its base model's weights."""
    place = tmp_path_factory.mktemp("runs")
    built_in = iconworld.model_folder("iconworld")
    assert built_in
    model = Path(shutil.copytree(built_in, place / built_in.name))
    for name in ("Zelda Quixote.png", "unet/quixotina.jpg", "notes.txt"):
        (model / name).write_text("Zelda Quixote")
    (model / "LICENSE").write_text("Do as you like.")
    vocabulary = place / "words.toml"
    people = f'[[groups]]\nname = "people"\nslot = "thing"\nkind = "person"\nconcepts = ["{PERSON.name}"]\n'
    known = (iconworld.HERE / "vocabulary.toml").read_text()
    vocabulary.write_text(known.replace("[[groups]]", f"{people}\n[[groups]]", 1))
    directory, base = begin(
        place / "run", FOX, PERSON,
        changes={
            "model": {"source": str(model)},
            "prompts": {"vocabulary": str(vocabulary)},
            "evaluate": {"protocol": str(PROTOCOL)},
        },
        model=backbones.model_digest(model),
    )  # fmt: skip
    gone: list[Concept] = [FOX, PERSON]
    for i, request in enumerate(directory.requests(), 1):
        add_step(directory, request, base, [c.name for c in gone[:i]], PASSED, previous=i - 1)
    Run(directory.path).resume()  # nothing is open: this writes the summary
    return directory.path


def speaking(folder: Path) -> set[str]:
    """The files whose name or content names the person."""
    names = [name.casefold().encode() for name in (*PERSON.names, *PERSON.name.split())]
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        p.name for p in files if any(n in part.lower() for part in (p.name.encode(), p.read_bytes()) for n in names)
    }


def test_a_redacted_export_names_no_person_anywhere(made: Path, tmp_path: Path) -> None:
    expunge("export", made, tmp_path / "clean")
    assert speaking(tmp_path / "clean") == set()
    card = (tmp_path / "clean" / "README.md").read_text()
    assert "- request 0001: fox\n- request 0002: a person\n" in card
    assert "| UA of request 0002 | 1.000 |" in card
    expunge("export", made, tmp_path / "open", "--no-redacted")  # the control: the search does find a name
    assert speaking(tmp_path / "open") == {"README.md"}
    assert f"- request 0002: {PERSON.name}\n" in (tmp_path / "open" / "README.md").read_text()


def test_an_export_holds_the_pipeline_its_licence_and_no_picture(made: Path, tmp_path: Path) -> None:
    run = Run(made)
    out = run.export(tmp_path / "clean")
    base = Path(run.config.model.source)
    found, there = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (out, base))
    assert there - found == {"Zelda Quixote.png", "unet/quixotina.jpg", "notes.txt"}
    assert found - there == {"README.md", ".expunge"}
    assert not PICTURES & {p.suffix for p in out.rglob("*")}
    assert run.directory.events()[-1]["model"] == backbones.model_digest(out)


def test_an_export_takes_the_place_of_an_earlier_one(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    expunge("export", made, out)
    (out / "model_index.json").unlink()
    first = (out / "README.md").read_text()
    expunge("export", made, out)
    assert (out / "model_index.json").exists()
    assert (out / "README.md").read_text() != first  # the head has moved on
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_does_not_take_the_place_of_its_base_model(made: Path) -> None:
    base = Path(Run(made).config.model.source)
    mark(base)  # the base model may be an export of another run
    try:
        assert "is the base model of this run" in expunge("export", made, base, code=2)
    finally:
        (base / ".expunge").unlink()
    assert backbones.model_digest(base) == Run(made).config.model.digest


def test_nothing_but_an_export_is_replaced(made: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.png").write_text("sun")
    events = (made / "events.jsonl").read_bytes()
    assert "is not empty, and is no export of Expunge" in expunge("export", made, photos, code=2)
    Run(made).export(tmp_path / "clean")
    (tmp_path / "clean" / "notes.md").write_text("my own")
    before = digest_folder(tmp_path, (".md", ".png", ".json"))
    assert "holds notes.md, which no export wrote" in expunge("export", made, tmp_path / "clean", code=2)
    assert digest_folder(tmp_path, (".md", ".png", ".json")) == before
    assert (made / "events.jsonl").read_bytes().startswith(events)


@pytest.mark.parametrize("to", [0, 1])
def test_an_export_is_of_one_model_whatever_happens_meanwhile(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: int
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    copied = backbones.copy_pipeline

    def copy(folder: Path, target: Path) -> None:
        Run(run).rollback(to, by="somebody else")
        copied(folder, target)

    monkeypatch.setattr(backbones, "copy_pipeline", copy)
    expunge("export", run, tmp_path / "clean")
    card = (tmp_path / "clean" / "README.md").read_text()
    assert "- request 0001: fox\n- request 0002: a person\n" in card
    assert "| UA of request 0002 | 1.000 |" in card
    monkeypatch.undo()
    before = Run(made).export(tmp_path / "before")
    assert backbones.model_digest(tmp_path / "clean") == backbones.model_digest(before)
