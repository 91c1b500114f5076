"""What a session has touched, as a state dict and back: values, where they lie, and which base they belong to."""

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from paring.delta.blocks import Rect, matrix_shape, read, write
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.tune.config import SliceConfig
from paring.tune.undo import UndoLog


def pack(log: UndoLog, tensors: Mapping[str, Tensor], fresh: Set[str]) -> dict[str, Any]:
    """``{"touched": {name: {rects [k, 4], values [..] flat, rows, columns, base}}}``; ``base`` hashes the originals.

    Tensors in ``fresh`` have no hash: they may differ from base to base (a new head).
    """
    touched = {}
    for name in log:
        rects = log.rects(name)
        values = torch.cat([read(tensors[name], rect).flatten() for rect in rects]).cpu()
        rows, columns = log.touched(name)
        touched[name] = {
            "rects": torch.tensor([(r.row, r.row_stop, r.column, r.column_stop) for r in rects]),
            "values": values,
            "rows": rows,
            "columns": columns,
            "base": "" if name in fresh else tensor_hash(v for _, v in log.originals(name)),
        }
    return {"touched": touched}


def check(state: Mapping[str, Any], config: SliceConfig) -> None:
    """That ``state`` is a session's, whole, and taken with ``config``.

    Raises:
        ValueError: naming what is missing or differs.
    """
    if state.get("version") != 1:
        raise ValueError(f"session state has version {state.get('version')!r}; expected 1")
    missing = {"config", "num_steps", "rank", "masters", "touched"} - set(state)
    if missing:
        raise ValueError(f"session state is incomplete: it has no {', '.join(sorted(missing))}")
    ours = config.as_dict()
    differing = [k for k in ours if ours[k] != state["config"].get(k)]
    if differing:
        what = ", ".join(f"{k} is {state['config'].get(k)!r}, here {ours[k]!r}" for k in differing)
        raise ValueError(f"session state was taken with another configuration: {what}")
    for name, least, most in (("num_steps", 0, None), ("rank", 1, config.rank)):
        value = state[name]
        if type(value) is not int or value < least or (most is not None and value > most):
            expected = f"from {least} to {most}" if most is not None else f"at least {least}"
            raise ValueError(f"session state is damaged: {name} is {value!r}; expected a whole number, {expected}")


def check_masters(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """That the fp32 working copies of a state are those that half-precision tensors have at its step.

    Raises:
        ValueError: one is missing, unknown here, or of another shape.
    """
    for name in sorted({*given, *expected}):
        theirs, ours = (list(side[name].shape) if name in side else "none" for side in (given, expected))
        if theirs != ours:
            raise ValueError(f"session state does not fit the model: the working copy of '{name}' is {theirs}, here {ours}")


def unpack(state: Mapping[str, Any], log: UndoLog, tensors: Mapping[str, Tensor]) -> None:
    """Writes what ``pack`` took over a model that holds the base, whose originals go to the (emptied) log.

    Raises:
        ValueError: a tensor is missing, has another shape or dtype, or holds another base's values, or the state is
            damaged; nothing is changed then.
    """
    for name, part in state["touched"].items():
        missing = {"rects", "values", "rows", "columns", "base"} - set(part)
        if missing:
            raise ValueError(f"session state is incomplete: '{name}' has no {', '.join(sorted(missing))}")
        _check_shape(name, part, tensors)
    for name, part in state["touched"].items():
        _check_base(name, part, tensors[name])
    log.clear()
    for name, part in state["touched"].items():
        tensor, rects = tensors[name], _rects(part)
        log.adopt(name, tensor, rects, part["rows"], part["columns"])
        for rect, values in zip(rects, part["values"].split([r.shape[0] * r.shape[1] for r in rects]), strict=True):
            write(tensor, rect, values.view(rect.shape))


def _rects(part: Mapping[str, Tensor]) -> list[Rect]:
    return [Rect(*row) for row in part["rects"].tolist()]


def _check_shape(name: str, part: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if name not in tensors:
        raise ValueError(f"session state does not fit the model: it has no tensor '{name}'")
    tensor = tensors[name]
    extents = part["rows"].numel(), part["columns"].numel()
    ours = matrix_shape(tensor.shape or torch.Size((1,)))
    if extents != ours or part["values"].dtype != tensor.dtype:
        raise ValueError(
            f"session state does not fit the model: '{name}' was {list(extents)} {part['values'].dtype}, "
            f"here it is {list(ours)} {tensor.dtype}"
        )
    if part["rects"].ndim != 2 or part["rects"].shape[1] != 4:
        raise ValueError(
            f"session state is damaged: the rectangles of '{name}' are {list(part['rects'].shape)}, expected [k, 4]"
        )
    rects = _rects(part)
    inside = all(0 <= r.row < r.row_stop <= ours[0] and 0 <= r.column < r.column_stop <= ours[1] for r in rects)
    touched = ours[0] * ours[1] - int((~part["rows"]).sum()) * int((~part["columns"]).sum())
    if not inside or not sum(r.shape[0] * r.shape[1] for r in rects) == touched == part["values"].numel():
        raise ValueError(
            f"session state is damaged: the rectangles of '{name}' do not fit its shape, the {touched} entries touched, or its "
            f"{part['values'].numel()} values"
        )


def _check_base(name: str, part: Mapping[str, Any], tensor: Tensor) -> None:
    if part["base"] and part["base"] != tensor_hash(read(tensor, rect) for rect in _rects(part)):
        raise ValueError(
            f"session state was taken on another base model: '{name}' holds other values; load the pretrained model that "
            "the run began with (not one that has been tuned since)"
        )
