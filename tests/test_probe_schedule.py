"""Schedules: the variants, and whether moving pays."""

from pathlib import Path

import pytest

from paring.probe.contrasts import at_best_rate, crossed
from paring.probe.kind import Row, Tables
from paring.probe.kinds.schedule import Settings, summaries, variants, verdict
from probe_task import task


def test_one_thing_is_varied_at_a_time() -> None:
    found = variants(Settings(steps=80, rank=4), num_blocks=4)
    sweep = {"rank": 4, "modes": ("column",), "move_steps": 10}
    assert found == {
        "static-column": sweep | {"move_steps": None},
        "column": sweep,
        "column-every-4": sweep | {"move_steps": 4},
        "column-every-20": sweep | {"move_steps": 20},
        "column-every-40": sweep | {"move_steps": 40},
        "static-row": {"rank": 4, "modes": ("row",), "move_steps": None},
        "row": sweep | {"modes": ("row",)},
        "both": sweep | {"modes": ("row", "column")},
        "column-half-stride": sweep | {"stride": 2},
        "column-random": sweep | {"order": "random"},
        "column-window": sweep | {"layer_window": 2},
    }
    assert list(variants(Settings(steps=80, vary=()), 4)) == ["static-column", "column"]
    few = variants(Settings(steps=80, rank=1, vary=("stride", "window"), move_steps=5), num_blocks=1)
    assert list(few) == ["static-column", "column"] and few["column"]["move_steps"] == 5
    assert "column-every-10" not in variants(Settings(steps=80, intervals=(10, 30)), 4)  # the sweep itself


def test_of_a_model(tmp_path: Path) -> None:
    result = task().probe("schedule", tmp_path, steps=8, batch_size=8, rates=(0.02,), seeds=(0, 1), rank=1, figure=True)
    assert {row["variant"] for row in result.tables["variants"]} == set(variants(Settings(steps=8, rank=1), 2))
    losses = {row["variant"]: row["train_loss"] for row in result.tables["runs"] if row["seed"] == 0}
    assert len(set(losses.values())) == len(losses)  # no two are the same training
    assert result.record["notes"][-1] == "no stride is varied: half of a slice of rank 1 is none"
    assert (tmp_path / "figure.png").stat().st_size > 5000


def made(means: dict[str, float], spread: float) -> Tables:
    rows: list[Row] = []
    for number, (variant, mean) in enumerate(means.items()):
        for seed in range(3):
            what: Row = {"variant": variant, "rate": 0.1, "seed": seed, "diverged": False, "interval": number or None}
            rows.append(what | {"validation": mean, "test": mean + spread * (-1, 0, 1)[(seed + number) % 3]})
    return {"runs": rows}


def test_verdicts() -> None:
    settings = Settings()
    means = {"static-column": 0.9, "column": 0.91, "column-every-9": 0.93, "row": 0.95}
    ahead = verdict(made(means, 0.002), settings)
    assert ahead.holds is True and ahead.numbers["interval"] == 2 and ahead.numbers["gain"] == pytest.approx(0.03)
    assert ahead.said.startswith("with columns of rank 5 moving every 2 of 200 steps") and "row +5.0" in ahead.said
    assert verdict(made(means | {"column": 0.85, "column-every-9": 0.86}, 0.002), settings).holds is False
    assert verdict(made(means, 0.05), settings).holds is None
    # Chosen from two sweeps: an interval for both at once.
    scored = crossed(at_best_rate(made(means, 0.02)["runs"], ("variant",)), "test")
    both = scored.between("column-every-9", "static-column", among=2).half
    assert verdict(made(means, 0.02), settings).numbers["gain_half_width"] == both > scored.between("row", "column").half
    # Of three rates the best of static columns is the highest: a better may lie beyond.
    grid = made(means, 0.002)["runs"]
    for rate, less in ((0.05, 0.01), (0.2, 0.01)):
        grid = [*grid, *({**row, "rate": rate, "validation": row["validation"] - less} for row in made(means, 0.002)["runs"])]  # type: ignore[operator]
    assert verdict({"runs": grid}, settings).holds is True
    edge = [row for row in grid if (row["variant"], row["rate"]) != ("static-column", 0.2)]
    found = verdict({"runs": edge}, settings)
    assert found.holds is None and "; the best rate of static-column is the highest or lowest tried" in found.said
    behind = [row | {"test": 0.8} if row["variant"] != "static-column" else row for row in grid]
    assert verdict({"runs": behind}, settings).holds is False
    edge = [row for row in behind if (row["variant"], row["rate"]) != ("column", 0.05)]
    assert verdict({"runs": edge}, settings).holds is None
    table = {row["variant"]: row for row in summaries(made(means, 0.002))["variants"]}
    assert table["static-column"]["low"] is None and table["row"]["low"] < 0.05 < table["row"]["high"]  # type: ignore[operator]
