"""Lottery tickets: masks by magnitude, what slices hold of them, and which slices are trained."""

from pathlib import Path

import pytest
import torch

from paring.probe.bench import Bench
from paring.probe.kind import Row, Tables
from paring.probe.kinds.tickets import Settings, make_ticket, verdict
from paring.probe.tickets import apply_masks, kept_largest, overlaps
from paring.probe.training import Room
from probe_task import task
from test_probe_training import subject


def test_the_largest_are_kept() -> None:
    weight = torch.tensor([[1.0, -5.0, 3.0], [-2.0, 4.0, 0.5]])
    every = torch.ones(2, 3, dtype=torch.bool)
    half = kept_largest(weight, every, 0.5)
    assert half.tolist() == [[False, True, True], [False, True, False]]
    again = kept_largest(-10 / weight, half, 2 / 3)  # of those left alone, whatever the others have grown to
    assert again.tolist() == [[False, False, True], [False, True, False]]
    assert int(kept_largest(weight, every, 1e-9).sum()) == 1 and kept_largest(weight, every, 1.0).all()
    equal = kept_largest(torch.ones(2, 3), every, 0.5)
    assert int(equal.sum()) == 3
    apply_masks({"w": weight}, {"w": half})
    assert weight.tolist() == [[0.0, -5.0, 3.0], [0.0, 4.0, 0.0]]


def test_overlaps_are_shares_of_entries() -> None:
    mask = torch.tensor([[[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]], dtype=torch.bool)
    assert overlaps(mask, "row", (0, 1), 2).tolist() == pytest.approx([4 / 8, 5 / 8])
    assert overlaps(mask, "column", (0, 2, 1), 2).tolist() == pytest.approx([3 / 6, 5 / 6, 3 / 6])
    two = torch.cat([mask, ~mask])
    assert overlaps(two, "row", (0, 1), 1).tolist() == pytest.approx([0.5, 0.5])


def test_rounds_of_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    ended: list[dict[str, torch.Tensor]] = []
    fit = Room.fit

    def watch(room: Room, model, parameters, rate, seed, after_step):  # type: ignore[no-untyped-def]
        begun.append({n: t.clone() for n, t in model.state_dict().items()})
        found = fit(room, model, parameters, rate, seed, after_step)
        ended.append({n: t.clone() for n, t in model.state_dict().items()})
        return found

    monkeypatch.setattr(Room, "fit", watch)
    name = "bert.encoder.layer.1.output.dense"
    weight = f"{name}.weight"
    with Bench(subject()) as bench:
        for source in ("rewound", "finetuned"):
            begun.clear()
            ended.clear()
            settings = Settings(steps=4, batch_size=8, rounds=2, keep=0.25)
            ticket = make_ticket(Room(bench, settings), settings, source, 1e-3, seed=0)
            assert [row["kept"] for row in ticket.rows] == pytest.approx([1, 0.5, 0.25], abs=0.01)
            first = kept_largest(ended[0][weight], torch.ones_like(ended[0][weight], dtype=torch.bool), 0.5)
            second = kept_largest(ended[1][weight], first, 0.5)
            assert torch.equal(ticket.masks[name][0], second)
            start = begun[0] if source == "rewound" else ended[0]
            assert torch.equal(begun[1][weight], start[weight] * first)
            assert not ended[1][weight][~first].any() and not ended[2][weight][~second].any()
            assert torch.equal(begun[1]["classifier.weight"], start["classifier.weight"])
            assert not torch.equal(ended[0][weight], begun[0][weight])


def test_a_rate_that_is_too_high_is_said() -> None:
    with Bench(subject()) as bench:
        settings = Settings(steps=30, rounds=1)
        with pytest.raises(ValueError, match=r"whole_rate is 1e\+30; the loss .* was not finite \(round 0, seed 0\)"):
            make_ticket(Room(bench, settings), settings, "rewound", 1e30, seed=0)


def test_of_a_model(tmp_path: Path) -> None:
    given = {"steps": 4, "batch_size": 8, "rounds": 1, "seeds": (0, 1), "axes": ("column",)}
    result = task().probe("tickets", tmp_path, **given, figure=True)
    assert len(result.tables["runs"]) == 2 * 2 * 2 and len(result.tables["tickets"]) == 2 * 2 * 2
    held = {(r["source"], r["choice"], r["seed"], r["layer"]): r for r in result.tables["slices"]}
    for (source, choice, seed, layer), row in held.items():
        if choice == "most":
            assert row["overlap"] >= row["mean_overlap"] >= held[source, "least", seed, layer]["overlap"]
    assert (tmp_path / "figure.png").stat().st_size > 5000
    # After a kill: the ticket that is needed is made again, and gives the same slices.
    lines = (tmp_path / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:2]))
    assert task().probe("tickets", tmp_path, **given).tables == result.tables


def made(most: float, least: float, spread: float) -> Tables:
    runs: list[Row] = []
    slices: list[Row] = []
    for number, (choice, mean) in enumerate((("most", most), ("least", least))):
        for seed in range(3):
            what: Row = {"source": "rewound", "axis": "row", "choice": choice, "rate": 0.1, "seed": seed}
            away = spread * (-1, 0, 1)[(seed + number) % 3]
            runs.append(what | {"validation": mean, "test": mean + away, "diverged": False})
            slices.append(what | {"layer": "a", "overlap": 0.3 - 0.2 * number, "mean_overlap": 0.2})
    tickets: list[Row] = [{"source": "rewound", "round": r, "seed": 0, "test": 0.9 - 0.1 * r} for r in (0, 1)]
    return {"runs": runs, "slices": slices, "tickets": tickets}


def test_verdicts() -> None:
    settings = Settings(axes=("row",), sources=("rewound",), rounds=1, keep=0.2)
    good = verdict(made(0.9, 0.897, 0.001), settings)
    assert good.holds is True and "rewound, rows: -0.3 points (95 % interval" in good.said
    assert "with 10 % of their entries in the mask against 30 %" in good.said and "80.0 %, whole 90.0 %" in good.said
    assert verdict(made(0.85, 0.9, 0.002), settings).holds is True  # ahead is not behind
    assert verdict(made(0.9, 0.85, 0.002), settings).holds is False
    assert verdict(made(0.9, 0.88, 0.03), settings).sentence.startswith("undecided, as measured it does not hold: ")
    assert verdict(made(0.9, 0.895, 0.03), settings).sentence.startswith("undecided, as measured it holds: ")
