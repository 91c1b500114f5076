"""Other ways to begin a slice than with fresh optimizer state, as ``session.step`` does: tried, not part of the library."""

from typing import Any

import torch
from torch.optim import Optimizer


def carrying(session: Any) -> Any:
    """A step that keeps Adam's second moments and its count over a move; the first moments begin at zero.

    The count stays high, so the first moment of zero is hardly corrected: the first step is about a tenth of a full one, and
    none of them divides by a single gradient's size, as the first steps of a fresh Adam do.
    """

    def step(optimizer: Optimizer) -> None:
        kept = {p: optimizer.state[p] for p in session.parameters() if p in optimizer.state}
        session.step()
        for parameter, state in kept.items():
            if parameter not in optimizer.state:  # dropped at a move
                state["exp_avg"].zero_()
                optimizer.state[parameter] = state

    return step


def easing_in(session: Any, num_steps: int) -> Any:
    """A step that takes, after each move, a growing share of what the optimizer did to the slices: 1/n, 2/n, ... 1.

    A warm-up of the slices' rate alone; the head, trained whole, goes on at the full one.
    """
    copies = session.parameters()[: len(session.active)]  # the slices' working copies come first
    before = [copy.detach().clone() for copy in copies]
    move_steps = session.config.move_steps

    @torch.no_grad()
    def step(optimizer: Optimizer) -> None:
        share = (session.num_steps % move_steps + 1) / num_steps
        if session.num_steps >= move_steps and share < 1:  # the first slice has the run's own warm-up
            for copy, old in zip(copies, before, strict=True):
                copy.lerp_(old, 1 - share)
        session.step()
        for copy, old in zip(copies, before, strict=True):
            old.copy_(copy)

    return step
