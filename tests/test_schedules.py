"""Schedules are pure functions of the step: where every slice lies, and what is refused."""

import pytest

from paring.tune.config import SliceConfig
from paring.tune.schedules import check, plan, positions, windows_from_output
from paring.tune.slices import Matrix, Slice


def starts(config: SliceConfig, steps: int, out: int = 10, inp: int = 7) -> list[tuple[str, int]]:
    matrices = {"w": Matrix(out, inp)}
    return [(s.axis, s.start) for s in (plan(config, matrices, i)["w"] for i in range(steps))]


def test_sweep_moves_every_n_steps_and_wraps() -> None:
    config = SliceConfig(rank=5, modes=("row",), move_steps=2)
    assert starts(config, 7) == [("row", 0)] * 2 + [("row", 5)] * 2 + [("row", 0)] * 2 + [("row", 5)]


def test_last_position_ends_with_the_layer() -> None:
    config = SliceConfig(rank=3, modes=("column",), move_steps=1)
    assert [s for _, s in starts(config, 5)] == [0, 3, 4, 0, 3]  # 7 columns: 0:3, 3:6, then 4:7


def test_layers_wrap_within_their_own_extent() -> None:
    config = SliceConfig(rank=4, modes=("row",), move_steps=1)
    both = {"small": Matrix(4, 9), "large": Matrix(12, 9)}
    rows = [plan(config, both, i) for i in range(4)]
    assert [p["small"].start for p in rows] == [0, 0, 0, 0]
    assert [p["large"].start for p in rows] == [0, 4, 8, 0]


def test_alternation_in_the_order_given() -> None:
    config = SliceConfig(rank=2, modes=("column", "row"), move_steps=1)
    assert starts(config, 5) == [("column", 0), ("row", 0), ("column", 2), ("row", 2), ("column", 4)]


def test_static_never_moves() -> None:
    config = SliceConfig(rank=2, modes=("row",), move_steps=None, position=3)
    assert set(starts(config, 1000)) == {("row", 3)}


def test_position_max_position_and_stride() -> None:
    config = SliceConfig(rank=2, modes=("row",), move_steps=1, position=1, max_position=8, stride=3)
    assert positions(config, 10) == (1, 4, 6)
    assert positions(config, 5) == (1, 3)  # the layer's extent bounds max_position


def test_explicit_positions_are_taken_in_order() -> None:
    config = SliceConfig(rank=2, modes=("row",), move_steps=1, order=(8, 0, 3))
    assert [s for _, s in starts(config, 4)] == [8, 0, 3, 8]


def test_random_order_visits_every_position_once_a_sweep_and_is_fixed_by_its_seed() -> None:
    def sweep(seed: int) -> list[int]:
        return [s for _, s in starts(SliceConfig(rank=1, modes=("row",), move_steps=1, order="random", seed=seed), 20)]

    first = sweep(0)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    assert first == sweep(0)
    assert first != sweep(1)
    assert first[:10] == [1, 8, 2, 9, 3, 4, 7, 6, 5, 0]  # the same in every version


def test_window_sweeps_from_the_output_down_before_slices_move() -> None:
    config = SliceConfig(rank=2, modes=("row",), move_steps=5, layer_window=2)
    layers = {str(i): Matrix(6, 6, block=i) for i in range(4)}
    at = [plan(config, layers, step) for step in (0, 5, 10)]
    assert [sorted(p) for p in at] == [["2", "3"], ["0", "1"], ["2", "3"]]
    assert at[0]["3"] == at[1]["0"] == Slice("row", 0, 2)
    assert at[2]["3"] == Slice("row", 2, 2)


def test_windows_keep_their_width() -> None:
    assert [sorted(w) for w in windows_from_output([0, 1, 2, 3, 4], 2)] == [[3, 4], [1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; expected a whole number, at least 1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": True}, "rank is True"),
        ({"modes": ()}, r"modes is \(\); expected \('row',\)"),
        ({"modes": "row"}, "modes is 'row'; expected a tuple"),
        ({"modes": ("row", "row")}, "modes is"),
        ({"modes": ("diagonal",)}, "modes is"),
        ({"position": -1}, "position is -1"),
        ({"max_position": 3}, "max_position is 3; expected at least position \\+ rank = 4"),
        ({"move_steps": 0}, "move_steps is 0"),
        ({"move_steps": None}, "a static slice never alternates"),
        ({"order": "backwards"}, "order is 'backwards'; expected 'sweep', 'random'"),
        ({"order": ()}, "order is"),
        ({"order": (1,), "position": 2}, "positions in order alone"),
        ({"bias": True, "modes": ("column",)}, "bias is True; expected the mode 'row'"),
        ({"layers": "middle:2"}, "layers is 'middle:2'; expected block indices"),
        ({"targets": "query"}, r"targets is 'query'; expected a tuple of str, such as \('query',\)"),
        ({"layer_window": 0}, "layer_window is 0"),
        ({"max_position": 8.0}, "max_position is 8.0; expected a whole number"),
        ({"max_position": True, "rank": 1}, "max_position is True; expected a whole number"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"bias": 1}, "bias is 1; expected True or False"),
        ({"starts": {"w": 1}}, "move_steps is 10; expected None: starts are those of a slice that never moves"),
        ({"starts": ("w",)}, r"starts is \('w',\); expected a position for every layer"),
        ({"starts": {"w": -1}}, "starts is {'w': -1}; expected the name of a layer and a whole number, at least 0"),
        ({"starts": {"w": 1}, "position": 1}, "starts is {'w': 1}; expected no position"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceConfig(**({"rank": 4, "move_steps": 10} | settings))


def test_settings_survive_a_round_trip() -> None:
    config = SliceConfig(rank=4, modes=("column",), move_steps=10, order=(1, 2), targets=("a", "b"))
    assert SliceConfig(**config.as_dict()) == config
    own = SliceConfig(rank=4, modes=("row",), move_steps=None, starts={"b": 2, "a": 1})
    assert own.as_dict()["starts"] == {"a": 1, "b": 2} and SliceConfig(**own.as_dict()) == own
    assert len({own, SliceConfig(rank=4, modes=("row",), move_steps=None, starts={"a": 1, "b": 2})}) == 1


def test_every_layer_may_have_a_start_of_its_own() -> None:
    config = SliceConfig(rank=2, modes=("column",), move_steps=None, starts={"a": 3, "b": 0})
    layers = {"a": Matrix(4, 5), "b": Matrix(4, 9)}
    check(config, layers)
    assert plan(config, layers, 7) == {"a": Slice("column", 3, 2), "b": Slice("column", 0, 2)}
    for starts, message in (
        ({"a": 3}, "starts has no position for 'b'; expected the 2 layers that are sliced"),
        ({"a": 3, "b": 0, "c": 0}, "starts names 'c', which is not sliced"),
        ({"a": 4, "b": 0}, "position 4 with rank 2 is beyond the extent: layer 'a' has 5 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            check(SliceConfig(rank=2, modes=("column",), move_steps=None, starts=starts), layers)


def test_what_a_layer_cannot_hold_is_refused_by_layer_and_extent() -> None:
    layers = {"big": Matrix(20, 20), "thin": Matrix(20, 6)}
    with pytest.raises(ValueError, match=r"rank 8 is larger than a layer: layer 'thin' has 6 columns"):
        check(SliceConfig(rank=8, modes=("column",), move_steps=1), layers)
    with pytest.raises(ValueError, match=r"position 4 with rank 4 is beyond the extent: layer 'thin' has 6 columns.*is 2"):
        check(SliceConfig(rank=4, modes=("column",), move_steps=1, position=4), layers)
    with pytest.raises(ValueError, match=r"position 5 with rank 4 is beyond the extent: layer 'thin'"):
        check(SliceConfig(rank=4, modes=("column",), move_steps=1, order=(0, 5)), layers)
    with pytest.raises(ValueError, match=r"layer_window is 3; the sliced layers stand in 1 block"):
        check(SliceConfig(rank=4, modes=("column",), move_steps=1, layer_window=3), layers)


@pytest.mark.parametrize(("axis", "start", "width"), [("diagonal", 0, 1), ("row", -1, 1), ("row", 0, 0)])
def test_slices_that_are_none(axis: str, start: int, width: int) -> None:
    with pytest.raises(ValueError, match="Slice: "):
        Slice(axis, start, width)  # type: ignore[arg-type]
