"""The quality benchmark's own logic: how a rate is found, and what a kill leaves behind."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quality.store import Store
from quality.walk import best_rate, start


def walk(scores: list[float], begin: int) -> tuple[int, set[int]]:
    """Where the walk ends, and what it asked for."""
    known: dict[int, float] = {}
    while True:
        found, wanted = best_rate(len(scores), begin, known.get)
        if found is not None:
            return found, set(known)
        assert not set(wanted) & set(known)
        known |= {i: scores[i] for i in wanted}


def test_the_walk_ends_where_both_neighbours_are_worse() -> None:
    assert walk([0.1, 0.2, 0.5, 0.4, 0.9], 1) == (2, {0, 1, 2, 3})  # a peak, not the highest of all
    assert walk([0.9, 0.2, 0.1], 1) == (0, {0, 1, 2})  # an end of the grid
    assert walk([0.1, 0.2, 0.3, 0.4], 1) == (3, {0, 1, 2, 3})
    assert walk([0.5, 0.5, 0.5], 1) == (0, {0, 1, 2})  # of equal scores the lower rate


def test_the_walk_begins_inside_the_grid() -> None:
    rates = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
    assert [start(rates, guess) for guess in (1.0, 2.0, 100.0, 0.001)] == [2, 3, 3, 1]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "made" / "cells.jsonl")
    store.add({"key": "a", "test": 0.5})
    store.add({"key": "b", "test": 0.6})
    path = tmp_path / "made" / "cells.jsonl"
    path.write_text(path.read_text()[:-5])
    again = Store(path)
    assert again.cells == {"a": {"key": "a", "test": 0.5}}
    again.add({"key": "b", "test": 0.7})
    assert Store(path).cells["b"]["test"] == pytest.approx(0.7)
