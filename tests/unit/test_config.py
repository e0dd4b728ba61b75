"""Configurations: presets that hold what they claim, and sentences for what cannot be."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.files import digest_file
from expunge.methods import METHODS
from expunge.prompts import LlmConfig
from expunge.stream import DEFAULT_PRESET, PRESETS, Run, RunConfig, preset, summary_schema

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_out(name: str) -> None:
    config = preset(name)
    assert RunConfig.from_data(tomllib.loads(config.to_toml()), "run.toml") == config


def test_the_default_is_the_preset_that_its_page_is_about() -> None:
    page = (Path(__file__).parents[2] / "docs" / "anchored.md").read_text()
    assert f"`{DEFAULT_PRESET}` is LACU" in page
    assert preset(DEFAULT_PRESET).method["teacher"] == "base"


def test_the_published_preset_holds_the_published_numbers() -> None:
    config = preset("lacu-sd15")
    assert config.train.batch_size * config.train.accumulation == 108
    assert config.train.warmup_steps == 10
    train = config.train
    assert (train.steps, train.learning_rate, train.schedule) == (300, 5e-5, "constant")
    assert (train.parameters, train.precision, train.max_grad_norm) == ("full", "fp16", 1.0)
    assert (train.betas, train.epsilon) == ((0.9, 0.999), 1e-8)
    assert train.weight_decay == 0  # published: 1e-2 (docs/method.md)
    assert (config.method["lambda_unlearn"], config.method["lambda_preserve"]) == (5.0, 25.0)
    assert (config.method["mapping"], config.method["retain"], config.method["teacher"]) == (
        "score",
        "local",
        "previous",
    )
    counts = ("forget_prompts", "mapping_candidates", "mapping_targets", "retain_concepts", "retain_prompts")
    assert [config.method[name] for name in counts] == [100, 10, 1, 10, 100]
    assert (config.method["t_min"], config.method["t_max"]) == (0, 600)
    assert (config.method["mapping_draws"], config.method["retain_draws"]) == (32, 16)
    assert config.constraints == ({"name": "l2", "weight": 2e-4, "toward": "previous"},)
    assert (config.replay.source, config.replay.steps, config.replay.solver) == ("fresh", 20, "published")


def test_the_preset_of_the_first_version_holds_its_numbers() -> None:
    config = preset("dfr-sd15")
    assert config.train.batch_size * config.train.accumulation == 78
    assert (config.train.steps, config.train.warmup_steps, config.train.learning_rate) == (600, 267, 1e-5)
    train = config.train
    assert (train.parameters, train.precision, train.max_grad_norm) == ("full", "fp16", 1.0)
    assert config.method["forget_prompts"] == 100
    assert (config.method["lambda_unlearn"], config.method["lambda_preserve"]) == (1.0, 10.0)
    assert (config.method["t_min"], config.method["t_max"]) == (0, 700)
    assert (config.method["mapping"], config.method["neighbours"]) == ("contextual", "source")
    assert round(config.method["local_share"] * config.method["retain_prompts"]) == 100
    assert config.method["retain_prompts"] - 100 == 50
    assert config.constraints == ({"name": "l2", "weight": 1e-4, "toward": "previous"},)
    assert (config.replay.source, config.replay.steps, config.replay.solver) == ("fresh", 30, "published")


@pytest.mark.parametrize("method", ["lacu", "dfr"])
def test_the_published_presets_are_the_defaults_of_their_methods(method: str) -> None:
    section = preset(f"{method}-sd15").method
    defaults = METHODS[method].Config().model_dump()
    assert {k: v for k, v in section.items() if k != "name"} == defaults
    assert section["lambda_empty"] == section["lambda_again"] == 0  # ours are not published


def test_naive_differs_from_lacu_in_what_it_leaves_out() -> None:
    """On the same budget: no replay of what must stay, no regularization, and the rest as in lacu."""
    naive, lacu = preset("naive-iconworld"), preset("lacu-iconworld")
    assert naive.constraints == () != lacu.constraints
    assert naive.build_method().weights.keys() == {"unlearn"}
    assert {k: v for k, v in lacu.method.items() if k in naive.method} | {"name": "naive"} == naive.method
    assert naive.train == lacu.train


def test_everything_is_written_out_so_that_a_run_does_not_depend_on_defaults() -> None:
    text = RunConfig.from_data({"method": {"name": "lacu"}, "constraints": [{"name": "l2"}]}, "here").to_toml()
    for field in ("lambda_preserve", "epsilon", "toward", "forget_latents", "max_ira_drop", "vocabulary"):
        assert f"{field} = " in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": {"t_min": 700, "t_max": 600}}, "must not be above t_max"),
        ({"constraints": [{"name": "l3"}]}, "no constraint 'l3'"),
        ({"replay": {"source": "buffer"}}, "'bank', 'fresh' or 'trajectory'"),
        ({"prompts": {"source": "foldr"}}, "a source of prompts is 'vocabulary', 'folder' or 'llm'"),
        ({"prompts": {"source": "folder"}}, "prompts.folder.folder: Field required"),
        ({"prompts": {"source": "folder", "folder": "x", "model": "y"}}, "no field 'prompts.folder.model'"),
        ({"prompts": {"source": "llm", "model": "y", "vocabulary": "z"}}, "no field 'prompts.llm.vocabulary'"),
        ({"prompts": {"source": "llm", "model": "y", "base_url": "localhost"}}, "prompts.llm.base_url"),
        ({"prompts": {"source": "llm", "model": "y", "base_url": "http://localhost:port/v1"}}, "is no address (Port"),
        ({"prompts": {"source": "llm", "model": "y", "base_url": "http://[::1/v1"}}, "is no address (Invalid IPv6"),
        ({"prompts": {"folder": "x"}}, "no field 'prompts.vocabulary.folder'"),
    ],
)
def test_what_cannot_be_used_is_answered_with_a_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ExpungeError) as error:
        preset("lacu-iconworld", changes)
    assert sentence in str(error.value)


def test_a_method_of_ones_own_is_named_by_file_and_class(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from expunge.methods.lacu import Lacu\n\n\nclass Mine(Lacu):\n    pass\n")
    config = preset("lacu-iconworld", {"method": {"name": f"{file}:Mine"}})
    assert type(config.build_method()).__name__ == "Mine"
    with pytest.raises(ExpungeError, match="no class 'Other'"):
        preset("lacu-iconworld", {"method": {"name": f"{file}:Other"}})
    with pytest.raises(ExpungeError, match="no preset 'lacu'"):
        preset("lacu")


OWN = """from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.constraints import Anchors, Constraint, ConstraintConfig
from expunge.methods.naive import Count, Naive, NaiveConfig


@dataclass(frozen=True)
class State:
    weights: Mapping[str, Tensor]


class MineConfig(NaiveConfig):
    many: Count = 3


class Mine(Naive):
    Config = MineConfig


class Shrink(Constraint):
    Config = ConstraintConfig

    def regularize(self, parameters: Mapping[str, nn.Parameter], anchors: Anchors) -> Tensor:
        return torch.zeros(())
"""


def test_a_method_and_a_constraint_of_ones_own_may_be_written_as_ours_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    preset_file = tmp_path / "mine.toml"
    preset_file.write_text(
        f'[method]\nname = "{file}:Mine"\nmapping_candidates = 2\n[[constraints]]\nname = "{file}:Shrink"\n'
    )
    config = preset(str(preset_file))
    assert type(config.build_method()).__name__ == "Mine"
    assert [type(c).__name__ for c in config.build_constraints()] == ["Shrink"]
    assert type(config.build_method()) is type(config.build_method())
    assert config.own_code == {str(file): digest_file(file)}
    assert preset("lacu-iconworld").own_code == {}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("class Mine(Naive):", "class Mine(Naive:", "line 22 cannot be run: SyntaxError: invalid syntax."),
        (
            "from torch import",
            "from torhc import",
            "line 7 cannot be run: ModuleNotFoundError: No module named 'torhc'",
        ),
        ("    def regularize", "    def regularise", "Shrink in .* lacks regularize, which a Constraint has"),
        (
            "Config = ConstraintConfig",
            "Config = dict",
            "Shrink in .* lacks a class Config, which is a ConstraintConfig",
        ),
        ("class Shrink(Constraint)", "class Shrink", "has no class 'Shrink' that is a Constraint"),
    ],
)
def test_what_is_wrong_with_ones_own_file_is_a_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    file = tmp_path / "mine.py"
    assert old in OWN
    file.write_text(OWN.replace(old, new))
    with pytest.raises(ExpungeError, match=sentence):
        preset("lacu-iconworld", {"constraints": [{"name": f"{file}:Shrink"}]})


def test_files_are_named_so_that_they_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes a month later comes from another folder."""
    (tmp_path / "mine.py").write_text("from expunge.methods.lacu import Lacu\n\n\nclass Mine(Lacu):\n    pass\n")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    changes = {
        "method": {"name": "mine.py:Mine"}, "model": {"source": "model"}, "evaluate": {"protocol": "mine.toml"},
        "prompts": {"source": "llm", "model": "small", "concepts": "known.toml"},
    }  # fmt: skip
    config = preset("lacu-iconworld", changes)
    monkeypatch.chdir("/")
    assert RunConfig.from_data(tomllib.loads(config.to_toml()), "run.toml") == config
    assert config.method["name"] == f"{tmp_path / 'mine.py'}:Mine"
    assert config.model.source == str(tmp_path / "model")
    assert config.evaluate.protocol == str(tmp_path / "mine.toml")
    assert isinstance(config.prompts, LlmConfig)
    assert (config.prompts.cache, config.prompts.concepts) == tuple(
        str(tmp_path / n) for n in ("prompt-cache", "known.toml")
    )
    named = preset("lacu-iconworld", {"model": {"source": "some/model"}})  # no folder, so an id of the hub
    assert (named.model.source, named.method["name"], named.evaluate.protocol) == (
        "some/model",
        "lacu",
        "iconworld-demo",
    )


def test_the_published_schema_of_the_summary_is_the_one_in_the_code() -> None:
    path = Path(__file__).parents[2] / "docs" / "summary.schema.json"
    assert json.loads(path.read_text()) == summary_schema()


@pytest.mark.filterwarnings("ignore:These prompts are left out")
@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ({"source": "folder", "folder": str(PROMPTS), "concepts": "none.toml"}, "concepts file .*none.toml"),
        ({"source": "folder", "folder": str(PROMPTS)}, "no prompts for 'fox'"),
        ({"source": "llm", "model": "small"}, "no API key in the environment"),
        ({"source": "llm", "model": "small", "base_url": "http://127.0.0.1:9/v1", "attempts": 1}, "cannot be used"),
    ],
)
def test_prompts_that_cannot_be_had_are_answered_before_a_model_is_loaded(
    prompts: dict[str, object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExpungeError, match=sentence):
        Run.create("run", requests=["fox"], changes={"prompts": prompts})
    assert not (tmp_path / "run").exists()


def test_each_source_of_prompts_survives_being_written_out() -> None:
    for prompts in ({"source": "folder", "folder": "x"}, {"source": "llm", "model": "y"}, {"vocabulary": "z"}):
        config = preset("lacu-iconworld", {"prompts": prompts})
        assert RunConfig.from_data(tomllib.loads(config.to_toml()), "run.toml") == config


@pytest.mark.parametrize(
    ("rows", "size", "parts"), [(100, 18, 1), (18, 18, 1), (9, 9, 2), (8, 6, 3), (4, 3, 6), (1, 1, 18)]
)
def test_a_smaller_batch_trains_on_the_same_rows(rows: int, size: int, parts: int) -> None:
    config = preset("lacu-sd15", {"train": {"batch_size": 18, "accumulation": 2, "stop": {"batches": 4}}})
    smaller = config.at_most(rows)
    assert smaller.train.stop is not None
    assert (smaller.train.batch_size, smaller.train.accumulation) == (size, 2 * parts)
    assert smaller.train.stop.batches * size == 4 * 18
    assert smaller.replay.batch_size == min(rows, config.replay.batch_size)
    same = {"batch_size": 18, "accumulation": 2, "stop": config.train.stop}
    assert smaller.train.model_copy(update=same) == config.train
