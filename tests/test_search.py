"""The search finds minima, keeps to its bounds, and depends on nothing but settings, starts and scores."""

import math
import warnings
from typing import Any

import numpy as np
import pytest

from paring.search import Driver, Result, SearchError, SearchSettings, Vector, search

AIM = (0.3, 1.7, 0.9, 1.1, 0.5)


def shifted(vector: Vector) -> float:
    return sum((value - aim) ** 2 for value, aim in zip(vector, AIM, strict=True))


def ellipsoid(dims: int, condition: float = 100.0) -> Any:
    """Axes turned at random, squared half-widths from 1 to ``condition``, its minimum of 0 at 0.8."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((dims, dims)))
    scale = condition ** (np.arange(dims) / (dims - 1))
    return lambda vector: float(scale @ (turn @ (np.array(vector) - 0.8)) ** 2)


def outline(result: Result) -> list[tuple[Any, ...]]:
    """All of a history but times and places."""
    return [(e.index, e.generation, e.start, e.coefficients, e.score) for e in result.history]


ONES = {"ones": [1.0] * 5}


def test_shifted_quadratic_within_the_budget() -> None:
    found = search(shifted, 5, ONES, SearchSettings(budget=600))
    assert found.score < 1e-4 and found.coefficients == pytest.approx(AIM, abs=0.01)
    assert found.score == shifted(found.coefficients)
    assert found.num_evaluations == len(found.history) == 600 and found.stopped_because == "budget"


def test_rotated_ellipsoid_far_better_than_random_draws() -> None:
    objective = ellipsoid(8)
    found = search(objective, 8, {"ones": [1.0] * 8}, SearchSettings(budget=1500))
    draws = np.random.default_rng(0).uniform(0, 2, (1500, 8))
    assert found.score < 1e-3 < min(map(objective, draws)) / 100


@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_a_start(seed: int) -> None:
    """Also when the start is already the minimum and the budget is too small for anything."""
    starts = {"ones": [1.0] * 5, "aim": list(AIM), "edge": [0.0] * 5}
    found = search(shifted, 5, starts, SearchSettings(budget=12, seed=seed))
    assert found.coefficients == AIM and found.score == 0
    assert found.start_scores == {"ones": shifted((1.0,) * 5), "aim": 0.0, "edge": shifted((0.0,) * 5)}
    assert [e.start for e in found.history[:4]] == ["ones", "aim", "edge", None]
    assert [e.generation for e in found.history[:4]] == [0, 0, 0, 1]


def test_begins_at_the_best_start() -> None:
    near = Driver(5, {"far": [0.0] * 5, "near": [1.8] * 5}, SearchSettings(step_size=0.001))
    near.ask(200)
    near.tell([2.0, 1.0])
    assert all(c.coefficients == pytest.approx([1.8] * 5, abs=0.05) and c.start is None for c in near.ask(200))


@pytest.mark.parametrize("dims", [1, 2, 7, 64])
def test_bounds_are_kept_and_reached(dims: int) -> None:
    """The minimum is in a corner; each coefficient has bounds of its own."""
    bounds = [(-1.0 - i, 0.5 * (i + 1)) for i in range(dims)]
    seen: list[Vector] = []

    def objective(vector: Vector) -> float:
        seen.append(vector)
        return -sum(vector)

    search(objective, dims, {}, SearchSettings(budget=40 + 10 * dims, bounds=tuple(bounds), step_size=0.6))
    assert len(seen[0]) == dims and seen[0] == tuple((low + high) / 2 for low, high in bounds)
    assert all(low <= value <= high for vector in seen for value, (low, high) in zip(vector, bounds, strict=True))
    last = seen[-1]
    assert sum(last) > 0.4 * sum(high for _, high in bounds)


def test_rounding_leaves_no_bounds() -> None:
    """-1 + (0.1 - -1) and the like are above the upper bound, which a candidate on it must not be."""
    rng = np.random.default_rng(0)
    low = rng.uniform(-1, 0, 1000)
    high = rng.uniform(0.01, 0.1, 1000)
    assert (low + (high - low) > high).any()
    driver = Driver(1000, {}, SearchSettings(bounds=tuple(zip(low, high, strict=True))))
    assert driver._in_bounds([1.0] * 1000) == pytest.approx(tuple(high))
    assert (np.array(driver._in_bounds([1.0] * 1000)) <= high).all()


@pytest.mark.parametrize("population", [4, 5, 6, 30])
def test_population(population: int) -> None:
    found = search(shifted, 5, ONES, SearchSettings(budget=1 + 3 * population, population=population))
    assert [sum(e.generation == g for e in found.history) for g in range(4)] == [1, population, population, population]


def test_not_finite_loses() -> None:
    """Half of the space has no score, among it the first start; the minimum beside the cliff is found."""

    def objective(vector: Vector) -> float:
        return (math.nan, math.inf, -math.inf)[int(vector[1] * 10) % 3] if vector[0] < 0.5 else shifted(vector)

    starts = {"bad": [0.1, 1, 1, 1, 1], "ones": [1.0] * 5}
    found = search(objective, 5, starts, SearchSettings(budget=500))
    assert found.start_scores == {"bad": None, "ones": shifted((1.0,) * 5)}
    assert any(e.score is None for e in found.history[2:])
    assert found.score == pytest.approx(0.04, abs=0.01)


def test_starts_without_a_score_are_survived() -> None:
    def objective(vector: Vector) -> float:
        return math.nan if vector == (1.0,) * 5 else shifted(vector)

    assert search(objective, 5, ONES, SearchSettings(budget=100)).score < shifted((1.0,) * 5)


def test_a_generation_without_a_score_halves_the_step() -> None:
    """Only near the start is there a score at all."""

    def objective(vector: Vector) -> float:
        return shifted(vector) if max(abs(value - 1) for value in vector) < 0.05 else math.nan

    found = search(objective, 5, ONES, SearchSettings(budget=400, step_size=1.0))
    assert all(e.score is None for e in found.history[1:9])
    assert found.score < shifted((1.0,) * 5) - 0.1


def test_no_score_at_all_is_an_error() -> None:
    calls: list[Vector] = []

    def objective(vector: Vector) -> float:
        calls.append(vector)
        return math.nan

    with pytest.raises(SearchError, match="none of the 1 starts and the 8 candidates .* try it by hand"):
        search(objective, 5, ONES)
    assert len(calls) == 9
    with pytest.raises(SearchError, match="none of 1 evaluations"):
        search(objective, 5, ONES, SearchSettings(budget=1))


def test_scores_count_by_their_order_alone() -> None:
    plain = search(shifted, 5, ONES)
    huge = search(lambda vector: math.exp(40 * shifted(vector)) * 1e200, 5, ONES)
    assert [e.coefficients for e in plain.history] == [e.coefficients for e in huge.history]


def test_same_seed_same_search_whatever_numpys_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two searches step by step between each other, with NumPy's global state disturbed, then forbidden."""
    want = outline(search(shifted, 5, ONES))
    assert want != outline(search(shifted, 5, ONES, SearchSettings(seed=1)))
    drivers = [Driver(5, ONES, SearchSettings()) for _ in range(2)]
    tried: list[list[Vector]] = [[], []]
    while len(tried[1]) < 200:
        for i, driver in enumerate(drivers):
            np.random.seed(len(tried[0]) + i)
            asked = driver.ask(200 - len(tried[i]))
            driver.tell([shifted(candidate.coefficients) for candidate in asked])
            tried[i] += [candidate.coefficients for candidate in asked]
    assert tried[0] == tried[1] == [entry[3] for entry in want]

    np.random.seed(5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert outline(search(shifted, 5, ONES)) == want
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


def test_no_files_no_output_no_warnings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text("{'timeout': 0}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(shifted, 5, ONES, SearchSettings(budget=50))
        search(lambda vector: 1.0, 5, ONES, SearchSettings(budget=300))  # flat
    assert [path.name for path in tmp_path.iterdir()] == ["cma_signals.in"]
    assert capfd.readouterr() == ("", "")


def test_stops() -> None:
    assert search(shifted, 5, ONES, SearchSettings(budget=5000, min_step=1e-3)).stopped_because == "min_step"
    flat = search(lambda vector: 1.0, 5, ONES, SearchSettings(patience=20))
    assert (flat.stopped_because, flat.num_evaluations) == ("patience", 1 + 3 * 8)
    loose = search(shifted, 5, ONES, SearchSettings(budget=1000, patience=30, tolerance=0.1))
    strict = search(shifted, 5, ONES, SearchSettings(budget=1000, patience=30))
    assert loose.stopped_because == "patience" and loose.num_evaluations < strict.num_evaluations
    starts = {str(i): [1.0] * 5 for i in range(7)}
    assert search(lambda vector: 1.0, 5, starts, SearchSettings(patience=9)).num_evaluations == 7 + 2 * 8  # not 7 + 8
    aimed = search(shifted, 5, ONES, SearchSettings(budget=1000, target=0.1))
    assert aimed.stopped_because == "target" and aimed.score <= 0.1
    assert all(e.score > 0.1 for e in aimed.history if e.generation < aimed.history[-1].generation)
    assert search(shifted, 5, {"aim": AIM}, SearchSettings(target=0.0)).num_evaluations == 1


@pytest.mark.parametrize("budget", range(1, 12))
def test_the_budget_is_kept_to(budget: int) -> None:
    assert search(shifted, 5, ONES, SearchSettings(budget=budget)).num_evaluations == budget


def test_the_last_generation_has_the_mean() -> None:
    """Under a noisy bowl the mean of the distribution is, on average, nearer to the minimum than the draws around it."""
    means, draws = [], []
    for seed in range(8):
        noise = np.random.RandomState(seed)
        found = search(lambda vector: shifted(vector) + 0.05 * noise.randn(), 5, ONES, SearchSettings(seed=seed))  # noqa: B023
        last = [shifted(e.coefficients) for e in found.history if e.generation == found.history[-1].generation]
        assert len(last) == 199 % 8
        means.append(last[0])
        draws += last[1:]
    assert np.mean(means) < 0.7 * np.mean(draws)


def test_what_the_objective_raises_comes_through() -> None:
    def objective(vector: Vector) -> float:
        raise KeyError("calibration")

    with pytest.raises(KeyError, match="calibration"):
        search(objective, 5, ONES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "`budget` is 0, expected 1 or more"),
        ({"budget": 2.5}, "`budget` is 2.5, expected an integer"),
        ({"budget": True}, "`budget` is True"),
        ({"bounds": (1.0, 1.0)}, "low < high"),
        ({"bounds": (0.0, math.inf)}, "two finite numbers"),
        ({"bounds": (0.0, math.nan)}, "two finite numbers"),
        ({"bounds": ((0, 1), (2, 1))}, r"`bounds\[1\]` is \(2.0, 1.0\)"),
        ({"bounds": (0, 1, 2)}, r"expected \(low, high\)"),
        ({"bounds": ()}, r"expected \(low, high\)"),
        ({"step_size": 0.0}, r"`step_size` is 0.0, expected in \(0, 1\]"),
        ({"step_size": math.nan}, "step_size"),
        ({"step_size": None}, "expected a number"),
        ({"population": 3}, "`population` is 3, expected 4 or more"),
        ({"seed": 2**32}, "seed"),
        ({"seed": None}, "`seed` is None, expected an integer"),
        ({"patience": 0}, "patience"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"min_step": 1.0}, "min_step"),
        ({"target": math.nan}, "target"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SearchSettings(**changes)


@pytest.mark.parametrize(
    ("dims", "starts", "settings", "message"),
    [
        (0, {}, {}, "`dims` is 0"),
        (2, {"a": [1.0]}, {}, "start 'a' has 1 coefficients, expected 2"),
        (2, {"a": [1.0, 2.5]}, {}, r"start 'a': coefficient 1 is 2.5, outside \[0.0, 2.0\]"),
        (2, {"a": [1.0, math.nan]}, {}, "coefficient 1 is nan"),
        (2, {"a": [1, 1], "b": [1, 1]}, {"budget": 1}, "2 starts and a budget of 1"),
        (2, {}, {"bounds": ((0, 1),) * 3}, "3 pairs of bounds for 2 coefficients"),
    ],
)
def test_starts_that_do_not_fit(dims: int, starts: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(shifted, dims, starts, SearchSettings(**settings))
