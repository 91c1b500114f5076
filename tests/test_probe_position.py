"""Accuracy against position: where slices lie, the band, and what is the seeds' doing."""

from pathlib import Path

import pytest

from paring.probe.kind import Row, Tables
from paring.probe.kinds.position import Settings, summaries, verdict
from paring.probe.training import Room
from probe_task import task


def test_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    train = Room.train

    def watch(room: Room, config, rate: float, seed: int):  # type: ignore[no-untyped-def]
        asked.append((config, rate, seed))
        return train(room, config, rate, seed)

    monkeypatch.setattr(Room, "train", watch)
    result = task().probe("position", tmp_path, steps=4, batch_size=8, rank=4, positions=3, seeds=(0, 1), figure=True)
    assert len(result.tables["runs"]) == 2 * 3 * 2 and len(asked) == 12
    query, output = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.output.dense"
    # The output layer is [24, 40]: each layer is gone through by its own extent.
    starts = [(c.modes, dict(c.starts)[query], dict(c.starts)[output]) for c, _, seed in asked if seed == 0]
    rows, columns = ("row",), ("column",)
    assert starts == [
        *((rows, at, at) for at in (0, 10, 20)),
        *((columns, at, wide) for at, wide in ((0, 0), (10, 18), (20, 36))),
    ]
    assert {rate for _, rate, _ in asked} == {0.02}  # recommended
    assert len(result.tables["positions"]) == 6 and (tmp_path / "figure.png").stat().st_size > 5000
    assert (
        result.verdict.numbers["num_positions"] == 6 and "over 6 positions x 2 seeds (rank 4, test rows)" in result.verdict.said
    )


def made(means: list[float], spread: float) -> Tables:
    rows: list[Row] = []
    for number, mean in enumerate(means):
        for seed in range(3):
            away = spread * (-1, 0, 1)[(seed + number) % 3] + 0.05 * seed  # the seeds' own effect drops out
            what: Row = {"axis": "row", "position": number / len(means), "rate": 0.1, "seed": seed, "diverged": False}
            rows.append(what | {"validation": mean, "test": mean + away})
    return {"runs": rows}


def test_verdicts() -> None:
    settings = Settings(axes=("row",))
    inside = verdict(made([0.850, 0.856, 0.844], 0.0005), settings)
    assert inside.holds is True and inside.said.startswith("within ±0.6 points (asked for: ±1) over 3 positions x 3 seeds")
    assert inside.numbers["row_farthest"] == pytest.approx(0.006) and inside.numbers["row_num_inside"] == 3
    outside = verdict(made([0.85, 0.90, 0.80], 0.001), settings)
    assert outside.holds is False and "1 of 3 inside" in outside.said
    unclear = verdict(made([0.85, 0.87, 0.83], 0.03), settings)
    assert (
        unclear.sentence.startswith("undecided, as measured it does not hold: within ±2.0 points")
        and unclear.numbers["row_by_chance"] > 0.01
    )  # type: ignore[operator]
    noisy = verdict(made([0.850, 0.856, 0.844], 0.01), settings)
    assert noisy.sentence.startswith("undecided, as measured it holds: within ±0.6 points")
    alone = {"runs": [row for row in made([0.850, 0.856], 0.0)["runs"] if row["seed"] == 0]}
    one = verdict(alone, Settings(axes=("row",), seeds=(0,)))
    assert "one seed: no interval" in one.said and one.holds is None and one.measured is True
    # Both axes are twice as many comparisons.
    other = [row | {"axis": "column"} for row in made([0.850, 0.856, 0.844], 0.0005)["runs"]]
    both = verdict({"runs": made([0.850, 0.856, 0.844], 0.0005)["runs"] + other}, Settings())
    assert both.numbers["row_half_width"] > inside.numbers["row_half_width"]  # type: ignore[operator]
    table = summaries(made([0.85, 0.90, 0.80], 0.001))["positions"]
    assert [row["away"] for row in table] == pytest.approx([0, 0.05, -0.05])
    assert all(row["low"] < row["away"] < row["high"] for row in table)  # type: ignore[operator]
