"""Lanes: runs whose slices never meet, and whose deltas fuse by plain addition."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from merges import whole, write
from paring import SliceConfig, TaskVector, sliced
from paring.delta.errors import DeltaError
from paring.fuse.engine import fuse
from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.registry import method
from paring.tune.schedules import bounds, check, plan
from paring.tune.slices import Matrix


@pytest.mark.parametrize("move_steps", [None, 1])
@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize(("n", "position", "max_position"), [(1, 0, None), (3, 0, None), (4, 2, 17), (7, 1, 99)])
def test_lanes_are_disjoint(move_steps: int | None, axis: Any, n: int, position: int, max_position: int | None) -> None:
    """Whatever their ranks and strides; moving slices visit all of their lane, and lanes all of the range."""
    layers = {"a": Matrix(16, 21), "b": Matrix(21, 16)}
    visited: dict[str, list[set[int]]] = {name: [] for name in layers}
    for i in range(1, n + 1):
        config = SliceConfig(
            rank=1 + i % 2, modes=(axis,), move_steps=move_steps, lane=f"{i}/{n}", position=position, max_position=max_position
        )
        check(config, layers)
        for name in layers:
            slices = [plan(config, layers, step)[name] for step in range(40)]
            visited[name].append({entry for s in slices for entry in range(s.start, s.stop)})
    for name, matrix in layers.items():
        lanes = visited[name]
        assert sum(map(len, lanes)) == len(set.union(*lanes))
        every = range(position, min(max_position or 99, matrix.extent(axis)))
        assert set.union(*lanes) <= set(every)
        if move_steps:
            assert set.union(*lanes) == set(every)
            assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


def test_a_lane_of_all_is_no_lane() -> None:
    a, b = (SliceConfig(rank=3, modes=("row",), move_steps=2, position=1, order="random", lane=lane) for lane in (None, "1/1"))
    layers = {"w": Matrix(13, 5)}
    assert [plan(a, layers, i) for i in range(50)] == [plan(b, layers, i) for i in range(50)]
    assert bounds(a, 13) == (1, 13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"lane": one}, f"lane is {one!r}; expected 'i/n' with i") for one in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2", 3)),
        ({"lane": "1/2", "modes": ("row", "column")}, "lane is '1/2'; expected one mode in modes: rows of one lane cross"),
        ({"lane": "1/2", "order": (0, 4)}, "positions in order alone, without position, max_position, stride and lane"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceConfig(**{"rank": 2, "modes": ("row",), "move_steps": 1} | settings)


def test_more_lanes_than_a_layer_has_room_for() -> None:
    layers = {"wide": Matrix(8, 100), "thin": Matrix(8, 11)}
    check(SliceConfig(rank=2, modes=("column",), move_steps=None, lane="5/5"), layers)
    message = (
        r"lane 1/6 has 1 of 11 columns, fewer than rank 2: layer 'thin' has 11 columns \(\[out, in\] = \[8, 11\]\); the most "
        r"lanes there are 5: take fewer, lower the rank, or exclude the layer"
    )
    with pytest.raises(ValueError, match=message):
        check(SliceConfig(rank=2, modes=("column",), move_steps=None, lane="1/6"), layers)
    with pytest.raises(
        ValueError, match=r"lane 2/4 has 1 of 4 columns, fewer than rank 2: layer 'thin'.*the most lanes there are 2"
    ):
        check(SliceConfig(rank=2, modes=("column",), move_steps=None, lane="2/4", position=7), layers)
    with pytest.raises(ValueError, match="position 12 with rank 2 is beyond the extent: layer 'thin'"):
        check(SliceConfig(rank=2, modes=("column",), move_steps=None, lane="1/2", position=12), layers)


def tuned(base: nn.Module, seed: int, config: SliceConfig) -> tuple[TaskVector, dict[str, Tensor]]:
    """A delta of its own data, and the model it makes."""
    model = copy.deepcopy(base)
    with sliced(model, config, verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=2e-2)
        for step in range(8):
            model(**tokens(seed=10 * seed + step)).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    return session.delta(), bits(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"modes": ("column",), "move_steps": None},
        {"modes": ("column",), "move_steps": 2},
        {"modes": ("row",), "move_steps": 2, "bias": True, "order": "random"},
    ],
    ids=["static", "moving", "rows with biases"],
)
def test_deltas_of_lanes_are_added_bitwise(tmp_path: Path, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
    base = bert().to(dtype)
    base.save_pretrained(tmp_path / "base")
    before, states, models = bits(base), [], []
    for i in (1, 2, 3):
        delta, state = tuned(base, i, SliceConfig(rank=2, train_also=(), lane=f"{i}/3", **settings))
        path = tmp_path / f"task{i}.delta.safetensors"
        paring.save_delta(delta, path)
        states.append(state)
        models.append({"model": str(path)})
    for name, tensor in before.items():
        changed = torch.stack([s[name] != tensor for s in states]).int().sum(0)
        assert int(changed.max() if changed.numel() else 0) <= 1, name
    assert all(any(not torch.equal(s[n], t) for n, t in before.items()) for s in states)
    config = {"merge_method": "disjoint", "base_model": str(tmp_path / "base"), "models": models}
    fuse(write(tmp_path, config), tmp_path / "out")
    out = whole(tmp_path / "out")
    expected = {}
    for name in out:
        expected[name] = before[name].clone()
        for state in states:
            expected[name] = torch.where(state[name] != before[name], state[name], expected[name])
    assert_same_bits(out, expected)
    if dtype == torch.float32:  # plain addition is the same but for its rounding
        added = sum(
            (paring.load_delta(m["model"], base=tmp_path / "base") for m in models[1:]),
            paring.load_delta(models[0]["model"], base=tmp_path / "base"),
        )
        for name, tensor in added.applied_to(before).items():
            torch.testing.assert_close(tensor, expected.get(name, tensor), rtol=1e-6, atol=1e-8)


def test_what_is_trained_whole_is_in_no_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said on entering, and refused where it meets, unless it is asked to be added up."""
    base = bert()
    base.save_pretrained(tmp_path / "base")
    models, states = [], []
    for i in (1, 2):
        config = SliceConfig(rank=2, modes=("column",), move_steps=None, lane=f"{i}/2")
        delta, state = tuned(base, i, config)
        paring.save_delta(delta, tmp_path / f"task{i}.delta.safetensors")
        models.append({"model": str(tmp_path / f"task{i}.delta.safetensors")})
        states.append(state)
    with sliced(bert(), config):
        assert "(column, rank 2, lane 2/2)" in (said := "".join(capsys.readouterr()))
        assert "trained whole: classifier (found: task head), outside of the lane" in said
    asked = {"merge_method": "disjoint", "base_model": str(tmp_path / "base"), "models": models}
    message = (
        r"'classifier.bias': models 'task1.delta.safetensors' and 'task2.delta.safetensors' both change entry 0 of 3; expected "
        r"models that change different ones \(paring tune --lane\): overlap: true for this tensor adds"
    )
    with pytest.raises(
        FuseError, match=message.replace("classifier.bias", "classifier.(bias|weight)").replace("0 of 3", r"\d+ of \d+")
    ):
        fuse(write(tmp_path, asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    overlap = [{"filter": "classifier", "value": True}, {"value": False}]
    fuse(write(tmp_path, asked | {"parameters": {"overlap": overlap}}), tmp_path / "out")
    before, out = bits(base), whole(tmp_path / "out")
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(out[name], states[0][name] + states[1][name] - before[name])


def test_the_same_change_is_refused_too() -> None:
    base, model = torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0])
    settings = method("disjoint").resolve({}, [{}, {}, {}])
    models = (torch.tensor([2.0, 0.0, 0.0, 0.0]), model, model.clone())
    with pytest.raises(FuseError, match="'w': models '1' and '2' both change entry 1 of 4"):
        method("disjoint")(Inputs("w", models, base, settings.parameters, settings.per_model))


def test_a_session_in_another_lane_is_another_run() -> None:
    model = bert()
    config = SliceConfig(rank=2, modes=("column",), move_steps=2, lane="1/2")
    with sliced(model, config, verbose=False) as session:
        state = session.state_dict()
    other = SliceConfig(rank=2, modes=("column",), move_steps=2, lane="2/2")
    with sliced(bert(), other, verbose=False) as session, pytest.raises((ValueError, DeltaError), match="lane"):
        session.load_state_dict(state)
