"""Judges by words: tiny models of the real classes, with answers that are known because the models were taught them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import tiny_judges
from expunge import ExpungeError, iconworld
from expunge.concepts import Concept
from expunge.evaluation import UNSURE, ClipJudge, Question, Subject, VisionLanguageJudge, find_judge, forget_rows
from expunge.evaluation.judges.vision_language import RECOGNISABLE, parse, wording

APPLE = Subject(Concept(name="apple", aliases=("red apple",), confusables=("golf ball",)), ("golf ball", "car", "dog"))
OIL = Subject(Concept(name="oil painting", kind="style"), ("drawing", "photo"))
PLAIN = Question("apple", "thing", {"thing": "apple"}, {"thing": APPLE})
PAINTED = Question("apple", "thing", {"thing": "apple", "style": "oil painting"}, {"thing": APPLE, "style": OIL})


def colour(*rgb: float) -> torch.Tensor:
    """A picture `(3 56 56)` of one colour, shaded from left to right."""
    return torch.tensor(rgb)[:, None, None] * torch.linspace(0.5, 1, 56).expand(56, 56)


RED, BLUE = colour(1, 0, 0), colour(0, 0.2, 1)


def to_pixels(picture: torch.Tensor) -> np.ndarray:
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


# -- CLIP -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP whose red picture is "a picture of an apple", and whose blue one is "a picture of a car"."""
    model, processor, tokenizer = tiny_judges.clip()
    tokens = tokenizer(["a picture of an apple", "a picture of a car"], padding=True, return_tensors="pt")
    seen = processor(images=[to_pixels(RED), to_pixels(BLUE)], return_tensors="pt")
    with torch.no_grad():
        features = model.get_text_features(**tokens).pooler_output
    tiny_judges.teach_clip(model, seen["pixel_values"], features)
    return tiny_judges.save(tmp_path_factory.mktemp("judges") / "clip", model, processor, tokenizer)


def test_clip_sees_what_it_was_taught(clip: str) -> None:
    subject = Subject(Concept(name="apple"), APPLE.alternatives)
    question = Question("apple", "thing", {"thing": "apple"}, {"thing": subject})
    red, blue = ClipJudge(clip).judge(torch.stack([RED, BLUE]), [question, question])
    assert (red.shown, red.recognisable, red.context, red.seen["thing"].value) == (True, True, None, "apple")
    assert (blue.shown, blue.recognisable, blue.context, blue.seen["thing"].value) == (False, True, None, "car")


def test_clip_probabilities_are_those_of_its_features(clip: str) -> None:
    """Computed here from the model's features, step by step: mean over names, cosine, logit scale, softmax."""
    model, processor, tokenizer = tiny_judges.clip()
    model.load_state_dict(load_file(Path(clip) / "model.safetensors"))
    grey = colour(0.6, 0.5, 0.5)
    with torch.no_grad():
        image = model.get_image_features(**processor(images=to_pixels(grey), return_tensors="pt")).pooler_output[0]
        options = [
            [
                F.normalize(model.get_text_features(**tokenizer(t, return_tensors="pt")).pooler_output[0], dim=0)
                for t in o
            ]
            for o in (
                ["a picture of an apple", "a picture of a red apple"],
                ["a picture of a golf ball"],
                ["a picture of a car"],
                ["a picture of a dog"],
            )
        ]
        cosines = [torch.cosine_similarity(image, torch.stack(o).mean(0), dim=0) for o in options]
        expected = (100 * torch.stack(cosines)).softmax(0)
    answer = ClipJudge(clip).judge(grey[None], [PLAIN])[0]
    assert answer.confidence == pytest.approx(float(expected[0]), abs=1e-4)
    assert answer.seen["thing"].confidence == pytest.approx(float(expected.max()), abs=1e-4)
    # The control: without the alias the first option is another.
    alone = torch.stack([torch.cosine_similarity(image, options[0][0], dim=0), *cosines[1:]])
    assert float((100 * alone).softmax(0)[0]) != pytest.approx(float(expected[0]), abs=1e-3)


def test_clip_is_unsure_between_its_thresholds(clip: str) -> None:
    blend = 0.5 * RED + 0.5 * BLUE
    question = Question("apple", "thing", {"thing": "apple"}, {"thing": Subject(Concept(name="apple"), ("car",))})
    p = ClipJudge(clip).judge(blend[None], [question])[0].confidence
    assert p is not None
    sure, unsure = max(p, 1 - p) - 1e-3, max(p, 1 - p) + 1e-3
    assert ClipJudge(clip, threshold=sure).judge(blend[None], [question])[0].shown is (p > 0.5)
    answer = ClipJudge(clip, threshold=unsure).judge(blend[None], [question])[0]
    assert (answer.shown, answer.recognisable, answer.seen["thing"].value) == (None, False, UNSURE)


def test_clip_checks_the_rest_of_the_scene(clip: str) -> None:
    answer = ClipJudge(clip, threshold=0.5).judge(RED[None], [PAINTED])[0]
    assert set(answer.seen) == {"thing", "style"}
    assert answer.context is (answer.seen["style"].value == "oil painting")
    style = Question("oil painting", "style", {"style": "oil painting"}, {"style": OIL})
    assert ClipJudge(clip).judge(RED[None], [style])[0].recognisable is None  # it was not asked about any thing


def test_clip_refuses_a_concept_that_it_has_nothing_to_compare_with(clip: str) -> None:
    judge = ClipJudge(clip)
    judge.check([PLAIN, PAINTED], (16, 16))
    with pytest.raises(ExpungeError, match=r"CLIP cannot judge 'apple'.*Name confusables"):
        judge.check(
            [Question("apple", "thing", {"thing": "apple"}, {"thing": Subject(Concept(name="apple"))})], (16, 16)
        )


# -- vision-language --------------------------------------------------------------------------------------------------------

ASKED = (
    "Does this picture show an apple (also called red apple)? What only resembles it, such as a golf ball, does not count. "
    "Answer with one word: yes or no."
)
STYLED = "Does this picture show oil painting style? Answer with one word: yes or no."


def taught(folder: Path, *lessons: tuple[torch.Tensor, str, str]) -> VisionLanguageJudge:
    model, processor, tokenizer = tiny_judges.vision_language()
    tiny_judges.teach_vision_language(model, processor, tokenizer, [(to_pixels(p), q, a) for p, q, a in lessons])
    return VisionLanguageJudge(tiny_judges.save(folder, model, processor, tokenizer))


def test_questions_name_aliases_and_what_does_not_count() -> None:
    assert wording(APPLE) == ASKED
    assert wording(OIL) == STYLED


def test_a_vision_language_model_answers_by_picture_and_by_question(tmp_path: Path) -> None:
    judge = taught(
        tmp_path,
        (RED, ASKED, "yes"), (RED, STYLED, "no"), (RED, RECOGNISABLE, "Yes."),
        (BLUE, ASKED, "no"), (BLUE, STYLED, "yes"), (BLUE, RECOGNISABLE, "no"),
    )  # fmt: skip
    red, blue = judge.judge(torch.stack([RED, BLUE]), [PAINTED, PAINTED])
    assert (red.shown, red.context, red.recognisable) == (True, False, True)
    assert (blue.shown, blue.context, blue.recognisable) == (False, True, False)
    assert {slot: seen.value for slot, seen in red.seen.items()} == {"thing": "apple", "style": "other"}
    assert {slot: seen.value for slot, seen in blue.seen.items()} == {"thing": "other", "style": "oil painting"}


@pytest.mark.parametrize("reply", ["perhaps", "yes and no", "", "\N{SNOWMAN}"])
def test_an_answer_that_is_no_yes_and_no_no_is_unknown(tmp_path: Path, reply: str) -> None:
    judge = taught(tmp_path, (RED, ASKED, reply), (RED, RECOGNISABLE, reply))
    assert judge.ask([to_pixels(RED)], [ASKED]) == [reply]
    answer = judge.judge(RED[None], [PLAIN])[0]
    assert (answer.shown, answer.recognisable, answer.seen["thing"].value) == (None, False, UNSURE)


def test_the_prompt_has_a_place_for_each_patch_and_says_where_they_are(tmp_path: Path) -> None:
    """A shorter prompt in the same batch is padded on the left. Picture places have the type 1, which sets their positions."""
    judge = taught(tmp_path, (RED, ASKED, "yes"))
    inputs = judge._inputs([to_pixels(RED)] * 2, [ASKED, STYLED])
    place = judge._tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (inputs["input_ids"] == place).sum(1).tolist() == [4, 4]
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == place)
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["attention_mask"][:, 0].tolist() == [1, 0]
    assert inputs["pixel_values"].shape == (2 * 16, 3 * 2 * 14 * 14)


def test_strict_reading() -> None:
    assert [parse(r) for r in ("yes", "Yes.", " NO\n", "**no**", '"yes"')] == [True, True, False, False, True]
    unreadable = ("", "yes, it does", "not", "nope", "yes no", "\ufffd", "I cannot tell", "eyes")
    assert [parse(r) for r in unreadable] == [None] * len(unreadable)


# -- choosing one -----------------------------------------------------------------------------------------------------------


def test_a_judge_is_found_by_name(clip: str, tmp_path: Path) -> None:
    own = {"iconworld": iconworld.judge}
    assert find_judge("iconworld", own).name.startswith("iconworld")
    assert find_judge(f"clip:{clip}", own).name == f"clip:{clip}"
    with pytest.raises(ExpungeError, match=r"There is no judge 'iconwrld'\. Did you mean iconworld"):
        find_judge("iconwrld", own)
    with pytest.raises(ExpungeError, match=r"names no model\. Write clip:MODEL"):
        find_judge("clip", own)
    with pytest.raises(ExpungeError, match="is no folder, and no hub id"):
        find_judge(f"clip:{tmp_path / 'nowhere'}", own)
    with pytest.raises(ExpungeError, match=r"holds a model of the type 'clip'.*works with a Qwen2.5-VL model"):
        find_judge(f"vl:{clip}", own)


def test_a_model_that_is_not_whole_is_refused(clip: str, tmp_path: Path) -> None:
    weights = Path(clip) / "model.safetensors"
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (Path(clip) / name).exists():
            (tmp_path / name).write_bytes((Path(clip) / name).read_bytes())
    with pytest.raises(ExpungeError, match=r"no \.safetensors file"):
        ClipJudge(str(tmp_path))
    tensors = load_file(weights)
    save_file({n: t for n, t in tensors.items() if n != "visual_projection.weight"}, tmp_path / "model.safetensors")
    judge = ClipJudge(str(tmp_path))
    with pytest.raises(ExpungeError, match=r"lacks 1 tensors, visual_projection\.weight"):
        judge.judge(RED[None], [PLAIN])
    (tmp_path / "config.json").write_text(json.dumps({"no": "type"}))
    with pytest.raises(ExpungeError, match="does not say what it is"):
        ClipJudge(str(tmp_path))


def test_a_judge_that_knows_the_rows_lets_them_pass_and_says_what_it_does_not_know(clip: str) -> None:
    protocol, words = iconworld.protocol("iconworld-demo"), iconworld.vocabulary()
    questions = [row.question for row in forget_rows(protocol, words, words.concept("fox"))]
    for judge in (iconworld.judge(), ClipJudge(clip)):
        judge.check(questions, (64, 64))
    with pytest.raises(ExpungeError, match="knows pictures of 64 x 64 pixels"):
        iconworld.judge().check(questions, (512, 512))
    with pytest.raises(ExpungeError, match=r"does not know the thing 'foxx'\. Did you mean fox"):
        iconworld.judge().check([Question("foxx", "thing", {"thing": "foxx"})], (64, 64))
    with pytest.raises(ExpungeError, match="cannot see the mood 'gloomy'"):
        iconworld.judge().check([Question("gloomy", "mood", {"mood": "gloomy"})], (64, 64))


def test_a_question_holds_what_must_not_count() -> None:
    """The protocol's neighbours of a concept are its confusables, and come first among what else could be there."""
    protocol, words = iconworld.protocol("iconworld-demo"), iconworld.vocabulary()
    row = forget_rows(protocol, words, words.concept("fox"))[0]
    near = protocol.neighbours["fox"].names
    fox = row.question.subjects["thing"]
    assert fox.concept.confusables == near == fox.alternatives[: len(near)]
    assert "fox" not in fox.alternatives
    assert {slot: s.concept.name for slot, s in row.question.subjects.items()} == dict(row.scene)
