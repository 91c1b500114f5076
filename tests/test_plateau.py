"""When rates and ranks decay, without a trainer."""

import math

import pytest
import torch
from torch import nn

from paring.trainer.plateau import Plateau


def watched(values: list[float], **settings: object) -> list[bool]:
    plateau = Plateau(metric="accuracy", greater_is_better=True, **settings)  # type: ignore[arg-type]
    return [plateau.observe({"eval_accuracy": v}) for v in values]


def test_patience_counts_evaluations_in_a_row() -> None:
    assert watched([0.5, 0.6, 0.6, 0.7, 0.6]) == [False, False, True, False, True]
    assert watched([0.5, 0.4, 0.4, 0.4, 0.4], tolerance=2) == [False, False, True, False, True]
    assert watched([0.5, 0.4, 0.6, 0.5], tolerance=2) == [False, False, False, False]
    assert watched([math.nan, math.nan, 0.1]) == [True, True, False]  # not a number is no improvement


def test_less_is_better_for_a_loss() -> None:
    plateau = Plateau()
    assert [plateau.observe({"eval_loss": v}) for v in (1.0, 0.9, 0.9, 0.5)] == [False, False, True, False]
    with pytest.raises(ValueError, match="the metric 'loss' is not among the evaluation's: eval_accuracy"):
        plateau.observe({"eval_accuracy": 1.0})


def test_rates_are_lowered_under_a_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    plateau = Plateau(learning_rate_decay=0.04, min_learning_rate=0.05)
    optimizer.step()
    schedule.step()
    assert plateau.lower_rates(optimizer, schedule) == [pytest.approx(0.06)]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    assert plateau.lower_rates(optimizer, schedule) == [0.05]  # not below the least
    assert Plateau(learning_rate_decay=0.1, min_learning_rate=0.2).lower_rates(optimizer, schedule) == [0.05]  # nor ever raised


def test_ranks_are_lowered() -> None:
    plateau = Plateau(rank_decay=2, min_rank=3)
    assert [plateau.next_rank(rank) for rank in (8, 4, 3, 1)] == [6, 3, 3, 1]


def test_a_checkpoint_keeps_the_count() -> None:
    one, other = Plateau(tolerance=3), Plateau(tolerance=3)
    for value in (1.0, 2.0, 2.0):
        one.observe({"loss": value})
    other.load_state_dict(one.state_dict())
    assert other.observe({"loss": 2.0}) and one.observe({"loss": 2.0})
