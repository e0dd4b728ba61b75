"""Prompts from a folder: paired by id, leaks and misalignments named with file and line."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

import tiny_judges
from expunge.concepts import Concept, mentions
from expunge.errors import ExpungeError
from expunge.evaluation import ClipJudge, Protocol, protocol_rows
from expunge.prompts import KnownConcepts, PromptFolder

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = Path(__file__).parents[3] / "shared" / "lacu-prompts"
"""Beside the repository, where somebody put it: the prompts that LACU was published with are not part of it."""
NOTHING: frozenset[str] = frozenset()


def read(folder: Path = DATA / "prompts", known: KnownConcepts | None = None) -> PromptFolder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PromptFolder(folder, known)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "prompts", tmp_path / "prompts"))


FOLDER = read()
GOLF_BALL = FOLDER.concept("Golf-ball")


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_leaks_are_left_out_and_named_with_file_and_line() -> None:
    with pytest.warns(UserWarning, match=r"golf_ball/related_score\.txt:6: 'Somebody collects golf balls' leaks"):
        PromptFolder(DATA / "prompts")
    assert len(FOLDER.leaks) == 2
    assert "golf_ball/related_concepts.txt:3: 'golf ball marker' leaks 'golf ball'" in FOLDER.leaks[0]
    assert "golf ball marker" not in FOLDER.related(GOLF_BALL)
    assert not any(mentions(p, GOLF_BALL) for p in FOLDER.retain_prompts(["plum", "marble"], 40, 1, NOTHING))


def test_a_leaking_candidate_is_left_out_with_its_own_line(copy: Path) -> None:
    change(copy / "golf_ball/candidates_clip.json", "A plum floats on a pond", "Golf balls float on a pond")
    leak = next(leak for leak in read(copy).leaks if "candidates" in leak)
    file, line, _ = leak.split(":", 2)
    assert "Golf balls float" in Path(file).read_text().splitlines()[int(line) - 1]
    prompt = read(copy).forget_prompts(GOLF_BALL, [], 9, 1, NOTHING)
    assert sorted(len(p.candidates) for p in prompt) == [2, 3, 3, 3]


def test_what_is_measured_is_not_trained_on_whichever_file_it_is_in(copy: Path) -> None:
    candidate = json.loads((copy / "golf_ball/candidates_clip.json").read_text())[0]["candidates"][0]["prompt"]
    retained = (copy / "golf_ball/related_score.txt").read_text().splitlines()[0]
    (copy / "race_car/val.csv").write_text("id,prompt\n1,a golf ball floats on a POND!\n2,A race car at night\n")
    with open(copy / "eval.csv", "a") as file:
        file.write(f"Plum,{candidate}.\nPlum,{retained.upper()}\n")
    source = read(copy)
    said = [leak for leak in source.leaks if "is an evaluation prompt too" in leak]
    assert len(said) == 3
    assert any("train.csv" in leak and "(val.csv:2)" in leak for leak in said)
    assert sum("(eval.csv:" in leak for leak in said) == 2
    left = source.forget_prompts(GOLF_BALL, [], 9, 1, NOTHING)
    assert len(left) == 3
    assert candidate not in [c.prompt for p in left for c in p.candidates]
    assert retained not in source.retain_prompts(source.related(GOLF_BALL), 200, 1, NOTHING)


def test_forget_and_mapping_prompts_are_paired_by_id_and_not_by_place(copy: Path) -> None:
    file = copy / "golf_ball/candidates_clip.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    turned = read(copy).forget_prompts(GOLF_BALL, [], 4, 1, NOTHING)
    assert sorted(turned, key=lambda p: p.id) == sorted(
        FOLDER.forget_prompts(GOLF_BALL, [], 4, 1, NOTHING), key=lambda p: p.id
    )
    pond = next(p for p in turned if p.prompt == "A golf ball floats on a pond")
    assert [(c.replacement, c.prompt) for c in pond.candidates][1:] == [
        ("plum", "A plum floats on a pond"),
        (None, "Nothing floats on a pond"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"id": "3"', '"id": "7"', "train.csv has no prompt with the id '7'"),
        ('"id": "3"', '"id": "2"', "the id '2' stands here a second time"),
        ("A golf ball floats on a pond", "A golf ball on a lake", "'A golf ball on a lake' is not the prompt"),
    ],
)
def test_misalignments_are_named_with_file_and_line(copy: Path, old: str, new: str, sentence: str) -> None:
    file = copy / "golf_ball/candidates_clip.json"
    change(file, old, new)
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if new in text)
    with pytest.raises(ExpungeError) as error:
        read(copy)
    named = [text for text in str(error.value).splitlines() if sentence in text]
    assert len(named) == 1
    # An entry is named by the line that it begins in, just above its id; the second "2" comes after the first.
    assert abs(int(named[0].split(":")[1]) - line) <= 2 or new == '"id": "2"'


def test_a_forget_prompt_without_candidates_is_named(copy: Path) -> None:
    with open(copy / "golf_ball/train.csv", "a") as file:
        file.write("5,A golf ball on the moon\n")
    with pytest.raises(ExpungeError, match=r"train\.csv:6: 'A golf ball on the moon' \(id '5'\) has no candidates"):
        read(copy)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("train.csv", "id,text\n1,x\n", r"train\.csv:1: this line needs the columns id,prompt"),
        ("train.csv", "id,prompt\n1,a golf ball\n1,b\n", r"train\.csv:3: this line repeats the id '1'"),
        ("candidates_clip.json", "[\n{]", r"candidates_clip\.json:2: this line is not JSON"),
        ("candidates_clip.json", '[\n{"id": 1}]', r"candidates_clip\.json:2: this line needs an id, a source"),
        ("related_score.txt", None, r"related_score\.txt cannot be read"),
    ],
)
def test_a_bad_file_is_named_with_its_line(copy: Path, name: str, text: str | None, sentence: str) -> None:
    file = copy / "golf_ball" / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(ExpungeError, match=sentence):
        read(copy)


def test_a_forget_prompt_whose_candidates_are_all_off_limits_still_serves_where_none_is_needed(
    copy: Path,
) -> None:
    (file,) = (copy / "golf_ball").glob("*.json")
    file.write_text(file.read_text().replace("Rain falls on nothing", "Rain falls on two marbles"))
    folder, avoid = read(copy), frozenset({"plum", "marble", "golf ball"})
    assert len(folder.forget_prompts(GOLF_BALL, [], 9, 1, avoid)) == 4  # as the mapping "null" asks
    assert len(folder.forget_prompts(GOLF_BALL, ["plum"], 9, 1, avoid)) == 3


def test_what_is_off_limits_is_in_no_prompt() -> None:
    avoid = frozenset({"plum", "golf ball"})
    for prompt in FOLDER.forget_prompts(GOLF_BALL, [], 4, 1, avoid):
        assert {c.replacement for c in prompt.candidates} == {"marble", None}
    assert not any("lum" in p for p in FOLDER.retain_prompts(["plum", "marble"], 20, 1, avoid))
    with pytest.raises(ExpungeError, match="No retain prompt is left"):
        FOLDER.retain_prompts(["plum"], 3, 1, avoid)
    plum = FOLDER.concept("plum")
    shown = FOLDER.evaluation_prompts(plum, 2, 1, frozenset({"golf ball"}), {})
    assert sorted(p.prompt for p in shown) == ["A plum on a saddle", "Plum still life"]
    assert shown[0].scene == {"thing": "Plum"}
    with pytest.raises(ExpungeError, match="has 2 evaluation prompts for 'Plum', not 3"):
        FOLDER.evaluation_prompts(plum, 3, 1, frozenset({"golf ball"}), {})


def test_a_race_car_is_a_car_only_where_nobody_says_otherwise() -> None:
    race_car, bicycle = FOLDER.concept("race car"), ["bicycle"]
    assert len(FOLDER.forget_prompts(race_car, [], 9, 1, frozenset({"car"}))) == 4  # its own name is no leak
    assert "A car beside a bicycle" in FOLDER.retain_prompts(bicycle, 2, 1, frozenset({"race car"}))
    assert "A car beside a bicycle" not in FOLDER.retain_prompts(bicycle, 4, 1, frozenset({"car"}))
    plain, told = KnownConcepts(), KnownConcepts.read(str(DATA / "concepts.toml"))
    assert plain.free_of(["a race car", "a car"], ["car"]) == []
    assert told.free_of(["a race car", "a car"], ["car"]) == ["a race car"]
    assert told.free_of(["golf balls", "a golfball", "a tennis ball"], ["golf ball"]) == ["a tennis ball"]


def test_a_prompt_that_names_no_neighbour_belongs_to_the_one_before_it() -> None:
    assert FOLDER.related(GOLF_BALL) == ["plum", "marble"]  # there is no prompt for an acorn
    assert "Juice drips onto a plate" in FOLDER.retain_prompts(["plum"], 3, 1, NOTHING)
    assert "Juice drips onto a plate" not in FOLDER.retain_prompts(["marble"], 4, 1, NOTHING)
    assert FOLDER.unrelated(GOLF_BALL) == ["tractor", "bicycle"]


def test_neighbours_without_prompts_are_named(copy: Path) -> None:
    with pytest.warns(UserWarning, match=r"no neighbours for that:\ngolf_ball: acorn$"):
        PromptFolder(copy)
    with open(copy / "golf_ball" / "related_concepts.txt", "a") as file:
        file.write("\n".join(f"fruit {i}" for i in range(9)))
    with pytest.warns(UserWarning, match=r"golf_ball: acorn, fruit 0, .*, fruit 6 and 2 more$"):
        PromptFolder(copy)


def test_what_can_only_be_measured_cannot_be_forgotten() -> None:
    with pytest.raises(ExpungeError, match=r"can measure 'Lighthouse' .* but not forget it"):
        FOLDER.related(FOLDER.concept("lighthouse"))
    with pytest.raises(ExpungeError, match=r"no prompts for 'lighthous'\. Did you mean Lighthouse"):
        FOLDER.concept("lighthous")


def test_a_protocol_may_count_neighbours_that_stand_in_eval_csv_alone(copy: Path, tmp_path: Path) -> None:
    """What the folder knows nothing about is told from what the protocol counts with it, by a judge that compares."""
    with (copy / "eval.csv").open("a") as file:
        file.write("Windmill, Windmill at dusk\nAcorn, Acorn and a leaf\nAcorn, Acorn on moss\n")
    folder = read(copy)
    protocol = Protocol.model_validate(
        {
            "schema": 1,
            "name": "counted",
            "model": "any",
            "judge": "iconworld",
            "seed": 1,
            "requests": [["golf ball"]],
            "neighbours": {"golf ball": {"held_out": ["plum"], "replayed": ["acorn"]}},
            "others": ["lighthouse", "windmill"],
            "sampler": {"solver": "default", "steps": 1, "guidance": 1.0},
            "between": {"forget": 2, "neighbours": 4, "others": 2},
            "final": {"forget": 2, "neighbours": 4, "others": 2},
        }
    )
    rows = protocol_rows(protocol, folder, [GOLF_BALL])
    assert [row.concept for row in rows] == [
        *["golf ball"] * 2, *["Plum"] * 2, *["Acorn"] * 2, "Lighthouse", "Windmill",
    ]  # fmt: skip
    subjects = {row.concept: row.subjects["thing"].alternatives for row in rows}
    assert subjects == {
        "golf ball": ("plum", "acorn", "marble"),
        "Plum": ("golf ball", "acorn"),
        "Acorn": ("golf ball", "plum"),
        "Lighthouse": ("windmill",),
        "Windmill": ("lighthouse",),
    }
    clip = ClipJudge(tiny_judges.save(tmp_path / "clip", *tiny_judges.clip()))
    clip.check([row.question for row in rows], (16, 16))


def test_kinds_and_aliases_come_from_the_concepts_file() -> None:
    told = read(known=KnownConcepts.read(str(DATA / "concepts.toml")))
    assert told.concept("golfball") == Concept(
        name="golf ball", aliases=("golfball",), confusables=("tennis ball",)
    )  # fmt: skip
    assert told.digest != FOLDER.digest == read().digest


def test_eval_csv_and_the_concepts_file_may_spell_a_name_differently(copy: Path) -> None:
    with (copy / "eval.csv").open("a") as file:
        file.write("plums, A plum on moss\nLight  house, A light house at dusk\n")
    known = {"schema": 1, "concepts": [{"name": "plum", "aliases": ["plums"]}]}
    folder = read(copy, KnownConcepts.model_validate(known))
    plum, house = folder.concept("Plum"), folder.concept("light house")
    shown = folder.evaluation_prompts(plum, 3, 1, frozenset({"golf ball"}), {})
    assert {p.prompt for p in shown} == {"A plum on a saddle", "Plum still life", "A plum on moss"}
    assert [p.prompt for p in folder.evaluation_prompts(house, 1, 1, NOTHING, {})] == ["A light house at dusk"]


def test_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (FOLDER.retain_prompts(["plum", "marble"], 12, seed, NOTHING) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published prompts are not in {PUBLISHED}")
def test_the_published_folder_loads() -> None:
    folder = read(PUBLISHED)
    assert len(folder.read) == 10
    assert [leak.removeprefix(f"{PUBLISHED}/") for leak in folder.leaks] == [
        "apple/related_concepts.txt:34: 'apple pie' leaks 'apple'.",
        "banana/related_concepts.txt:29: 'banana split' leaks 'banana'.",
        "golf_ball/related_score.txt:63: 'Children watch their parents hit golf balls.' leaks 'golf ball'.",
        "golf_ball/related_score.txt:68: 'A man gathers golf balls from the ground.' leaks 'golf ball'.",
    ]
    known = {"schema": 1, "concepts": [{"name": "cartoon style", "kind": "style", "aliases": ["cartoon"]}]}
    more = set(read(PUBLISHED, KnownConcepts.model_validate(known)).leaks) - set(folder.leaks)
    assert any("funny cartoon scene" in leak for leak in more)  # what the page on prompts says of it
    for one in folder.read:
        prompts = folder.forget_prompts(one.concept, [], 100, 1, NOTHING)
        assert len(prompts) == 100
        assert all(len(p.candidates) >= 9 for p in prompts)
        assert len(folder.evaluation_prompts(one.concept, 20, 1, NOTHING, {})) == 20
        # A deck goes round. All prompts come that do not leak, of neighbours that two files share those of both.
        dealt = set(folder.retain_prompts(folder.related(one.concept), 1000, 1, NOTHING))
        assert len(dealt) == {"apple": 143, "banana": 138, "golf ball": 98}.get(one.concept.name, 100), one.concept.name
    assert len(folder.evaluation_prompts(folder.concept("tennis ball"), 20, 1, frozenset({"golf ball"}), {})) == 20
