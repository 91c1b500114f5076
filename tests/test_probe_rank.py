"""Accuracy against rank: what is trained at each, and what the curves say."""

from pathlib import Path

import pytest

from paring.probe.bench import Bench
from paring.probe.kind import Row, Tables
from paring.probe.kinds.rank import Settings, plan, summaries, verdict
from paring.probe.training import Room
from probe_task import task
from test_probe_training import subject


def test_of_a_model(tmp_path: Path) -> None:
    given = {"steps": 6, "batch_size": 8, "rates": (0.01, 0.02), "seeds": (0, 1)}
    result = task().probe("rank", tmp_path, **given, ranks=(1, 5, 24), move_steps=2, figure=True)
    runs = result.tables["runs"]
    assert len(runs) == 2 * 3 * 2 * 2 and {row["rank"] for row in runs} == {1, 5, 24}
    by = {(r["schedule"], r["rank"], r["rate"], r["seed"]): r for r in runs}
    # Columns have as many entries as a layer has rows: per block 5 x 24 + 40, the pooler's 24; the head has 75.
    columns = 2 * (5 * 24 + 40) + 24
    assert [by["static", rank, 0.01, 0]["num_trainable"] for rank in (1, 24)] == [columns + 75, 24 * columns + 75]
    assert by["static", 1, 0.01, 0]["train_loss"] != by["moving", 1, 0.01, 0]["train_loss"]
    assert len(result.tables["curve"]) == 6 and {row["num_seeds"] for row in result.tables["curve"]} == {2}
    assert result.record["facts"]["narrowest"] == 24
    assert (tmp_path / "figure.svg").stat().st_size > 5000
    said: list[str] = []
    from paring.probe.runner import run

    subject = {"data": str(task().data), "task": "text-classification", "max_length": 7}
    again = run(
        "rank",
        str(task().model),
        out=tmp_path,
        say=said.append,
        **subject,
        **given,
        ranks=(1, 5, 24),
        move_steps=2,
        figure=False,
    )
    assert "24 of 24 cells are there already and are kept" in said and again.tables["runs"] == runs


def test_ranks_are_powers_up_to_the_narrowest_layer(tmp_path: Path) -> None:
    result = task().probe("rank", tmp_path / "rows", steps=1, rates=(0.01,), seeds=(0,), schedules=("static",), axis="row")
    assert [row["rank"] for row in result.tables["curve"]] == [1, 2, 4, 8, 16, 24]
    columns = task().probe(
        "rank", tmp_path / "columns", steps=1, rates=(0.01,), seeds=(0,), schedules=("static",), ranks=(1, 2, 3)
    )
    assert columns.tables["runs"][0]["validation_loss"] != result.tables["runs"][0]["validation_loss"]  # other entries
    assert not any("ranks end with" in note for note in result.record["notes"])


def test_a_layer_far_narrower_than_the_others_is_said(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from small_text import tokenizer

    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4, "vocab_size": 16}
    BertModel(BertConfig(**shape, max_position_embeddings=16)).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    with Bench(subject(model=str(tmp_path / "model"))) as bench, plan(bench, Settings(schedules=("static",))) as found:
        assert {cell.what["rank"] for cell in found.cells} == {1, 2, 4}
        said = "ranks end with the 4 columns of layer 'bert.encoder.layer.0.output.dense'; without it (--exclude)"
        assert found.notes[-1].startswith(said)


def made(curves: dict[str, dict[int, float]], spread: float = 0.004, edges: tuple[int, ...] = ()) -> Tables:
    """Test accuracies around the curve, validation two points above; the same three offsets, turned, at every rank. Of three
    rates the middle one is best, of the ranks in ``edges`` the highest."""
    rows: list[Row] = []
    for schedule, curve in curves.items():
        for number, (rank, mean) in enumerate(curve.items()):
            for seed in range(3):
                away = spread * (-1, 0, 1)[(seed + number) % 3]
                best = 0.2 if rank in edges else 0.1
                for rate in (0.05, 0.1, 0.2):
                    row: Row = {"schedule": schedule, "rank": rank, "rate": rate, "seed": seed, "num_trainable": 7}
                    less = 0.0 if rate == best else 0.3
                    rows.append(row | {"diverged": False, "validation": mean + 0.02 - less, "test": mean + away - less})
    return {"runs": rows}


def test_verdicts() -> None:
    settings = Settings(schedules=("static",))
    humped = verdict(made({"static": {1: 0.7, 4: 0.9, 16: 0.91, 64: 0.8}}), settings)
    assert humped.holds is True and humped.numbers["static_best_rank"] == 16 and humped.numbers["static_saturated_at"] == 4
    assert humped.numbers["static_rise"] == pytest.approx(0.21) and humped.numbers["static_fall"] == pytest.approx(0.11)
    assert "between the ends at rank 16: over rank 1 +21.0 points (95 % interval" in humped.said
    rising = verdict(made({"static": {1: 0.7, 4: 0.85, 16: 0.91}}), settings)
    assert rising.holds is False and rising.measured is False
    assert "best at rank 16 of 1 to 16, with 91.0 %" in rising.said and "over rank 16 -6.0 points" in rising.said
    flat = verdict(made({"static": {1: 0.7, 4: 0.9, 16: 0.899}}), settings)
    assert flat.holds is None and flat.measured is True
    assert flat.sentence.startswith("undecided, as measured it holds: static slices are best at rank 4")
    level = verdict(made({"static": {1: 0.7, 4: 0.9, 16: 0.901}}), settings)
    assert level.holds is None and level.sentence.startswith("undecided, as measured it does not hold: ")
    alone = {"runs": [row for row in made({"static": {1: 0.7, 4: 0.8, 16: 0.9}})["runs"] if row["seed"] == 0]}
    assert verdict(alone, Settings(schedules=("static",), seeds=(0,))).holds is None
    both = Settings()
    hump, rise = {1: 0.7, 4: 0.9, 16: 0.8}, {1: 0.7, 4: 0.8, 16: 0.9}
    assert verdict(made({"static": hump, "moving": hump}), both).holds is True
    assert verdict(made({"static": hump, "moving": rise}), both).holds is False
    curve = summaries(made({"static": hump}))["curve"]
    assert [row["test"] for row in curve] == pytest.approx([0.7, 0.9, 0.8])
    # Two schedules are four comparisons, each with a wider interval than of two.
    wide = verdict(made({"static": hump, "moving": hump}), both).numbers["static_rise_half_width"]
    assert wide > verdict(made({"static": hump}), settings).numbers["static_rise_half_width"]  # type: ignore[operator]


def test_a_rate_at_the_edge_decides_nothing() -> None:
    """The rank may be better with a rate that was not tried."""
    settings = Settings(schedules=("static",))
    hump, rise = {1: 0.7, 4: 0.9, 16: 0.8}, {1: 0.7, 4: 0.8, 16: 0.9}
    for curve, edges, holds in (
        (hump, (4,), True),
        (hump, (16,), None),
        (hump, (1,), None),
        (rise, (16,), False),
        (rise, (4,), None),
    ):
        found = verdict(made({"static": curve}, edges=edges), settings)
        assert found.holds is holds, (curve, edges)
        assert f"at rank {edges[0]} the best rate is the highest or lowest tried" in found.said
    table = summaries(made({"static": hump}, edges=(16,)))["curve"]
    assert [row["at_edge"] for row in table] == [False, False, True]


def test_wide_slices_take_lower_rates() -> None:
    with Bench(subject()) as bench:
        room = Room(bench, Settings())
        rank = room._recommended.config.rank
        assert room.rates_of(rank) == room.rates and len(room.rates) == 4
        assert room.rates_of(4 * rank) == pytest.approx([rate / 4 for rate in room.rates], rel=1e-2)
        assert room.rates_of(1) == pytest.approx([rate * min(4, rank) for rate in room.rates], rel=1e-2)
        assert Room(bench, Settings(rates=(0.1, 0.2))).rates_of(1) == (0.1, 0.2)
