"""Who is nearest in score distance: by all draws, and by successive halving with a fraction of them."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from expunge.backbones import Conditioning, Predictor
from expunge.locality import Draws, choose_mapping, nearest
from expunge.prompts import Candidate, ForgetPrompt

DRAWS = Draws(torch.zeros(8, 1, 1, 1), torch.arange(8.0))


def told(*places: float) -> Conditioning:
    return Conditioning({"x": torch.tensor(places)})


class Told:
    """A backbone that encodes a prompt as its place."""

    def encode(self, prompts: list[str]) -> Conditioning:
        return told(*map(float, prompts))


class Scores:
    """A predictor whose prompts stand at given places: the distance of one at x to the source at 0 is x^2 (1 + noise)."""

    def __init__(self, noise: float = 0.0, misled: bool = False) -> None:
        self.evaluations, self.calls = 0, 0
        self.backbone = Told()
        self._noise, self._misled = noise, misled

    def __call__(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.evaluations, self.calls = self.evaluations + len(t), self.calls + 1
        place = conditioning.tensors["x"]
        if self._misled:
            place = torch.where((t == 0) & (place > 0), (40 - place) / 10, place)
        wave = torch.sin(7 * t + 3 * place)  # another one for every prompt and draw
        return (place * (1 + self._noise * wave).sqrt()).view(-1, 1, 1, 1)


def find(scores: Scores, places: list[float], halving: int | None) -> list[tuple[int, float]]:
    (found,) = nearest(cast(Predictor, cast(Any, scores)), [(told(0.0), told(*places))], DRAWS, 8, halving=halving)
    return found


PLACES = [float((7 * i) % 33 + 1) for i in range(32)]
TRUTH = sorted(range(32), key=PLACES.__getitem__)


@pytest.mark.parametrize("halving", [None, 4])
def test_the_nearest_come_first_with_their_distance(halving: int | None) -> None:
    found = find(Scores(), PLACES, halving)
    assert [i for i, _ in found] == TRUTH
    assert [distance for _, distance in found] == pytest.approx([PLACES[i] ** 2 for i in TRUTH])


def test_halving_finds_the_same_with_a_third_of_the_evaluations() -> None:
    every, few = Scores(noise=0.2), Scores(noise=0.2)
    best = [i for i, _ in find(every, PLACES, None)][:4]
    found = find(few, PLACES, 4)
    assert [i for i, _ in found][:4] == best
    assert sorted(i for i, _ in found) == list(range(32))
    assert every.evaluations == 8 * 33
    # 32 candidates on 1 draw, 16 on 1 more, 8 on 2, 4 on 4, and the source on each; the last batch is filled up to eights.
    assert few.evaluations == 40 + 24 + 24 + 24


def test_halving_can_be_wrong_where_the_first_draw_misleads() -> None:
    """The control: who looks far in the first draw is gone after it."""
    assert [i for i, _ in find(Scores(misled=True), PLACES, None)][:4] == TRUTH[:4]
    assert not {i for i, _ in find(Scores(misled=True), PLACES, 4)[:4]} & set(TRUTH[:4])


def test_few_candidates_or_draws_are_all_scored() -> None:
    scores = Scores()
    assert [i for i, _ in find(scores, [3.0, 1.0, 2.0], 2)] == [1, 2, 0]
    assert scores.evaluations == 8 * 4


@pytest.mark.parametrize("halving", [None, 1])
def test_prompts_that_share_batches_are_ranked_as_each_alone(halving: int | None) -> None:
    compared = [(told(float(s)), told(*(float((5 * i + s) % 11) for i in range(4)))) for s in range(6)]
    alone, together = Scores(noise=0.2), Scores(noise=0.2)
    one_by_one = [nearest(cast(Any, alone), [pair], DRAWS, 64, halving=halving) for pair in compared]
    found = nearest(cast(Any, together), compared, DRAWS, 64, halving=halving)
    assert found == [ranking for (ranking,) in one_by_one]
    assert len({tuple(i for i, _ in ranking) for ranking in found}) > 1
    assert together.calls < alone.calls


def test_mapping_prompts_are_chosen_for_many_prompts_at_once() -> None:
    offered = [["3", "1"], ["9"], ["4", "2", "8"], ["6", "7"], ["5", "0"]]
    prompts = [ForgetPrompt("same id", "0", tuple(Candidate(p, p) for p in each)) for each in offered]
    scores = Scores()
    chosen = choose_mapping(cast(Any, scores), prompts, DRAWS, 64)
    assert [c.mapping[0].prompt for c in chosen] == ["1", "9", "2", "6", "0"]
    assert [len(c.distances) for c in chosen] == [2, 0, 3, 2, 2]
    assert scores.calls == 1 + 1 + 1  # two prompts with two candidates, the third such prompt, and the one with three


def test_where_candidates_drop_out_batches_are_full_all_the_same() -> None:
    prompts = [ForgetPrompt(str(i), "0", tuple(Candidate(str(j), str(j)) for j in range(1, 11))) for i in range(80)]
    scores = Scores()
    choose_mapping(cast(Any, scores), prompts, DRAWS, 64, halving=True)
    # On 1 draw ten candidates and the source, on 1 more five, on 2 three, on 4 two.
    fewest = 80 * (11 + 6 + 2 * 4 + 4 * 3) / 64
    assert fewest < scores.calls < 1.2 * fewest
