"""One token of each row's softmax: as often as its probability, and paired between policies."""

import math

import pytest
import torch

from warp_core.engine.draw import BLOCK, draw
from warp_core.store.errors import EvaluationError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_word_of_several_blocks_is_drawn_as_often_as_its_probability():
    """Pearson's χ² over a vocabulary of three blocks, the last of them not full."""
    words, draws = 600, 60_000
    logits = torch.randn(words, generator=seeded(3))
    wanted = torch.softmax(logits, dim=0) * draws
    drawn = draw(logits.expand(draws, words), seeded())
    counts = drawn.flatten().bincount(minlength=words)
    assert len(counts) == words > 2 * BLOCK
    assert wanted.min() > 2
    chi_square = ((counts - wanted) ** 2 / wanted).sum().item()
    assert chi_square < 711.7  # 99.9 % quantile of χ² with 599 degrees of freedom


def test_policies_that_hardly_differ_draw_the_same_from_the_same_numbers():
    logits = 3 * torch.randn(400, 5000, generator=seeded(1))
    moved = logits + 1e-4 * torch.randn(logits.shape, generator=seeded(2))
    same = draw(logits, seeded()) == draw(moved, seeded())
    assert same.float().mean() > 0.995
    assert not torch.equal(draw(logits, seeded()), draw(logits, seeded(1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_an_error(bad):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(EvaluationError, match="logits are not finite"):
        draw(logits, seeded())


def test_a_word_without_probability_is_never_drawn():
    logits = torch.full((1000, 4), -math.inf)
    logits[:, 2] = 0.0
    assert (draw(logits, seeded()) == 2).all()
