"""What to train: the settings of a SliceFine run, checked as far as that goes without a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from paring.tune.slices import AXES, Axis

if TYPE_CHECKING:
    from paring.tune.recommended import Recommended

Order = str | tuple[int, ...]
Starts = Mapping[str, int] | tuple[tuple[str, int], ...]
_LANE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """Which slices are trained, and when they move (SliceFine, arXiv 2510.08513; choices in docs/method.md).

    Attributes:
        rank: width of a slice, in rows or columns; at least 1, at most each layer's extent.
        modes: ``("row",)``, ``("column",)``, or both: then windows alternate in the order given.
        move_steps: optimizer steps between two moves (the paper's N); None: a static slice, which takes one mode.
        position: first row or column of the first slice.
        max_position: end (exclusive) of the range that is swept; None: the layer's own extent, which also
            bounds any larger value, since layers differ.
        stride: distance between neighbouring positions; None: the rank, so that slices do not overlap.
        lane: "i/n", i from 1 to n: the i-th of n equal shares of that range, of every layer. Runs in different lanes of one n,
            one mode and one range train no entry in common, but for ``train_also``: their deltas fuse by plain addition
            (``merge_method: disjoint``). Takes one mode: a row and a column cross. None: the whole range.
        order: ``"sweep"``, ``"random"`` (a new permutation every sweep), or the starting positions themselves.
        starts: of a static slice, its first row or column in every layer by itself, ``{layer name: position}`` (kept as pairs,
            by name); for slices that something told to choose, such as a score of their weights. None: ``position`` in all.
        targets: names of layers to slice, as globs (``*`` within a name part, ``**`` across; a pattern also
            matches the end of a name) or ``re:`` and a regular expression for the whole name. None: every sliceable
            layer but the output head.
        exclude: patterns of layers to leave out.
        bias: train the bias entries of the active rows too; needs the mode "row".
        train_also: modules trained whole (a new head), same patterns. None: for a Hugging Face model its task
            head, otherwise nothing. ``()``: nothing.
        layer_window: only this many consecutive blocks hold active slices at a time; the window sweeps from the
            output down, one window a move, and the slices move on when it has passed all blocks. Ours, not the paper's.
        layers: blocks that ever hold slices: indices (negative from the end), or "upper:3", "lower:3". None: all.
        seed: of ``order="random"``.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rank: int
    modes: tuple[Axis, ...] = ("row", "column")
    move_steps: int | None
    position: int = 0
    max_position: int | None = None
    stride: int | None = None
    lane: str | None = None
    order: Order = "sweep"
    starts: Starts | None = None
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    bias: bool = False
    train_also: tuple[str, ...] | None = None
    layer_window: int | None = None
    layers: str | tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("modes", "targets", "exclude", "train_also"):
            _as_tuple(self, name, str)
        if not isinstance(self.order, str):
            _as_tuple(self, "order", int)
        if not isinstance(self.layers, str):
            _as_tuple(self, "layers", int)
        if not self.modes or len(set(self.modes)) != len(self.modes) or set(self.modes) - set(AXES):
            _refuse("modes", self.modes, "('row',), ('column',), or both in the order to alternate in")
        _at_least(self, "rank", 1)
        _at_least(self, "position", 0)
        for name in ("move_steps", "stride", "layer_window"):
            if getattr(self, name) is not None:
                _at_least(self, name, 1)
        if not isinstance(self.bias, bool):
            _refuse("bias", self.bias, "True or False")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            _refuse("seed", self.seed, "a whole number")
        if self.max_position is not None:
            _at_least(self, "max_position", 1)
        if self.max_position is not None and self.max_position < self.position + self.rank:
            _refuse("max_position", self.max_position, f"at least position + rank = {self.position + self.rank}")
        if self.move_steps is None and len(self.modes) > 1:
            _refuse("move_steps", None, "a number of steps: a static slice never alternates; or name one mode in modes")
        if isinstance(self.order, str):
            if self.order not in ("sweep", "random"):
                _refuse("order", self.order, "'sweep', 'random', or a tuple of starting positions")
        elif not self.order or min(self.order) < 0:
            _refuse("order", self.order, "at least one starting position, none negative")
        elif self.position or self.max_position is not None or self.stride is not None or self.lane is not None:
            _refuse("order", self.order, "positions in order alone, without position, max_position, stride and lane")
        if self.lane is not None:
            found = _LANE.fullmatch(self.lane) if isinstance(self.lane, str) else None
            if found is None or not 1 <= int(found[1]) <= int(found[2]):
                _refuse("lane", self.lane, "'i/n' with i from 1 to n, such as '2/4'")
            if len(self.modes) > 1:
                _refuse("lane", self.lane, "one mode in modes: rows of one lane cross the columns of every other")
        if self.starts is not None:
            _check_starts(self)
        if self.bias and "row" not in self.modes:
            _refuse("bias", True, "the mode 'row' in modes: the bias entries trained are those of the active rows")
        if isinstance(self.layers, str):
            side, _, count = self.layers.partition(":")
            if side not in ("upper", "lower") or not count.isdigit() or int(count) < 1:
                _refuse("layers", self.layers, "block indices, 'upper:3' or 'lower:3'")

    @property
    def share(self) -> tuple[int, int]:
        """The lane as numbers: the i-th of n shares, i from 0; (0, 1): all."""
        if self.lane is None:
            return 0, 1
        i, _, n = self.lane.partition("/")
        return int(i) - 1, int(n)

    @staticmethod
    def recommended(model: Any, num_steps: int) -> "Recommended":
        """Slices and a learning rate for ``model`` that need no tuning: static column slices.

        What did well on the tasks of ``benchmarks/tune_quality.py``: in the upper half of a text model's blocks, of rank up to
        32; in all blocks of any other model, of rank up to 16. At most as many entries as LoRA of rank 8 has in every layer;
        layers of few inputs are left out.

        Args:
            model: as for ``paring.sliced``; pretrained, since a random lower half must be trained too.
            num_steps: optimizer steps of the run.

        Returns:
            ``(config, learning_rate)``: the rate is the highest, for AdamW with a short warm-up, then linearly to zero.

        Raises:
            ValueError: the model has no layer to slice, or ``num_steps`` is below 1.
        """
        from paring.tune.recommended import recommended  # reads models; this file does not

        return recommended(model, num_steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain values (tuples as lists), equal for equal settings; ``SliceConfig(**config.as_dict())`` gives it back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return plain if self.starts is None else plain | {"starts": dict(self.starts)}


def _refuse(name: str, got: object, expected: str) -> NoReturn:
    raise ValueError(f"SliceConfig: {name} is {got!r}; expected {expected}")


def _at_least(config: SliceConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(name, value, f"a whole number, at least {least}")


def _check_starts(config: SliceConfig) -> None:
    """Of a static slice and nothing else that says where; becomes pairs in the order of the names."""
    given = config.starts
    try:
        pairs = tuple(sorted(dict(given).items()))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        _refuse("starts", given, "a position for every layer, such as {'encoder.0.query': 8}")
    for name, start in pairs:
        if not isinstance(name, str) or isinstance(start, bool) or not isinstance(start, int) or start < 0:
            _refuse("starts", {name: start}, "the name of a layer and a whole number, at least 0")
    elsewhere = (config.position, config.max_position, config.stride, config.lane, config.order)
    if elsewhere != (0, None, None, None, "sweep"):
        _refuse("starts", dict(pairs), "no position, max_position, stride, lane and order beside it")
    if config.move_steps is not None:
        _refuse("move_steps", config.move_steps, "None: starts are those of a slice that never moves")
    object.__setattr__(config, "starts", pairs)


def _as_tuple(config: SliceConfig, name: str, kind: type) -> None:
    """Lists become tuples; one bare string where several are expected is a slip that would be read letter by letter."""
    value = getattr(config, name)
    if value is None and name not in ("modes", "exclude"):
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, kind) for v in value):
        _refuse(
            name,
            value,
            f"a tuple of {kind.__name__}, such as ({value!r},)" if isinstance(value, kind) else f"a tuple of {kind.__name__}",
        )
    object.__setattr__(config, name, tuple(value))
