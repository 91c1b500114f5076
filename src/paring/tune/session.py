"""The session: slices of a model are trained in place, while it lasts and no longer.

    with paring.sliced(model, config) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=2e-3)
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            session.step()          # slices into the weights; every move_steps, on to the next
            optimizer.zero_grad()
    delta = session.delta()         # what changed, as blocks
    session.revert()                # bitwise the weights from before

Entering freezes the model and adds working copies and hooks (inject); ``step`` writes the copies back and, when the
schedule says so, moves them; leaving, also by an exception, gives back a plain model with the weights learnt so far.
The originals of what was touched lie in a file on disk (undo), so memory holds the working copies alone.
"""

import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from paring.delta.blocks import whole, write
from paring.delta.claims import refuse_claimed
from paring.delta.names import ModelTensors
from paring.delta.taskvector import TaskVector
from paring.tune import schedules
from paring.tune.config import SliceConfig
from paring.tune.inject import AnySlot, Injection, make_slot, refuse_second
from paring.tune.learnt import task_vector
from paring.tune.resume import check, check_masters, pack, unpack
from paring.tune.slices import Slice
from paring.tune.targets import Selection, select
from paring.tune.undo import UndoLog
from paring.tune.watch import OptimizerWatch


def sliced(model: nn.Module, config: SliceConfig, *, verbose: bool = True, scratch: str | None = None) -> "SliceSession":
    """A session that trains slices of ``model``; enter it with ``with``.

    Args:
        model: any module; its forward must run the targeted layers' own forward.
        config: what to train and when it moves.
        verbose: print one line on entering: what is sliced, what is trained whole.
        scratch: folder for the originals of what is touched (a file without a name); None: the system's.

    Raises:
        ValueError: the configuration does not fit the model. RuntimeError: the model is in a session already.
            In both cases nothing was changed.
    """
    return SliceSession(model, config, verbose=verbose, scratch=scratch)


class SliceSession:
    """See ``sliced``. The attributes are to be read, not set.

    Attributes:
        model, config: as given.
        selection: the layers sliced and the modules trained whole.
        num_steps: optimizer steps taken.
        rank: of the slices now; the configured one until ``narrow``.
    """

    def __init__(self, model: nn.Module, config: SliceConfig, *, verbose: bool = True, scratch: str | None = None) -> None:
        refuse_second(model)
        self.model, self.config = model, config
        self.selection: Selection = select(model, config)
        self.matrices = {layer.name: layer.matrix for layer in self.selection.layers}
        schedules.check(config, self.matrices)
        self.num_steps, self.rank = 0, config.rank
        self._verbose, self._scratch = verbose, scratch
        self._slots: list[AnySlot] = []
        self._injection: Injection | None = None
        self._undo: UndoLog | None = None
        self._watch = OptimizerWatch()

    # Entering and leaving.

    def __enter__(self) -> Self:
        if self._undo is not None:
            raise RuntimeError("a session is entered once; open a new one with paring.sliced(model, config)")
        refuse_second(self.model)
        self._undo = UndoLog(self._scratch)
        self._slots = [make_slot(layer, self.config) for layer in self.selection.layers]
        self._injection = Injection(self.model, self._slots, self.selection, self._watch.refuse_stale)
        try:
            self._injection.insert()
            self._keep_whole()
            self._place()
            self._watch.start(self._injection)
            self._watch.restarted()
            if self._verbose and not (torch.distributed.is_available() and torch.distributed.is_initialized() and _rank()):
                print(f"paring: {self.summary()}", file=sys.stderr)
        except BaseException:
            self._watch.stop()
            self._injection.remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        refused = self._leave()
        if refused is not None and kind is None:  # else the error on its way has said it, or says more
            raise refused
        if kind is None and self._watch.trained:
            for text in self._watch.idle():
                warnings.warn(text, stacklevel=2)

    def close(self) -> None:
        """Leaves a plain model with the weights learnt so far; again does nothing. ``delta`` and ``revert`` still work.

        ``requires_grad`` and ``grad`` of the model's parameters are then what they were on entering.

        Raises:
            RuntimeError: a weight was replaced or cast under its working copy (see ``step``); the model is plain all the
                same, with all that could be written.
        """
        refused = self._leave()
        if refused is not None:
            raise refused

    def _leave(self) -> RuntimeError | None:
        if self._injection is None or not self.open:
            return None
        try:
            return self._injection.write_last()
        finally:
            self._watch.stop()
            self._injection.remove()

    @property
    def open(self) -> bool:
        return self._watch.started

    # Training.

    def parameters(self) -> list[nn.Parameter]:
        """What to give the optimizer: the slices' working copies, then the modules trained whole."""
        return self._opened().parameters()

    @property
    def num_trainable(self) -> int:
        """Entries trained at this step, or in the last one: the active slices, and the modules trained whole."""
        self._log()  # before entering there is no step
        wholes = self._injection.wholes if self._injection else []
        return sum(slot.num_active() for slot in self._slots) + sum(w.trained.numel() for w in wholes)

    @property
    def active(self) -> dict[str, Slice]:
        """The active slices, by layer."""
        return {slot.layer.name: slot.slice for slot in self._slots if slot.slice is not None}

    def step(self) -> None:
        """After each optimizer step: the slices go into the weights, and move on when it is time.

        A step that a gradient scaler skipped counts as a step too. A slice that becomes active starts with fresh
        optimizer state; gradients of the slice left behind are dropped.

        Raises:
            RuntimeError: a weight has another type, shape or identity than on entering (``model.bfloat16()``,
                ``load_state_dict(assign=True)``); the optimizer's step refuses it before this does. Moving the model to
                another device is fine.
        """
        injection = self._opened()
        self._watch.settle()
        injection.write_back()
        self._watch.stale = False
        self.num_steps += 1
        if schedules.visits(self.config, self.num_steps) != schedules.visits(self.config, self.num_steps - 1):
            self._place()

    def narrow(self, rank: int) -> None:
        """Goes on with slices of a lower rank, from the next step (rank decay). Counts as a move.

        The working copies keep their identity and size; a narrower slice uses the first of their entries. The schedule is
        that of the configuration with this rank, at the present step. ``revert`` goes back to the configured rank.

        Args:
            rank: at least 1, at most the present one.

        Raises:
            ValueError: another rank. RuntimeError: the session is not open, or an optimizer's step waits for ``step``.
        """
        self._opened()
        self._watch.settle()
        self._watch.refuse_stale()
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= self.rank:
            raise ValueError(f"narrow: rank is {rank!r}; expected a whole number from 1 to {self.rank}, the present rank")
        if rank != self.rank:
            self.rank = rank
            self._place()

    def summary(self) -> str:
        """One line: what is sliced, what is trained whole, what was left alone."""
        layers, total = self.selection.layers, sum(p.numel() for p in self.model.parameters())
        if self._injection is not None and self.open:
            total = self._injection.entered.num_entries  # without the working copies
        lane = f", lane {self.config.lane}" if self.config.lane else ""
        window = f" in a window of {self.config.layer_window} blocks" if self.config.layer_window else ""
        text = (
            f"{len(layers)} layers sliced ({'/'.join(self.config.modes)}, rank {self.rank}{lane}{window}), "
            f"{self.num_trainable:,} of {total:,} entries trained at a time"
        )
        if self.selection.whole:
            text += f"; trained whole: {', '.join(self.selection.whole)}" + (
                " (found: task head)" if self.selection.found else ""
            )
            text += ", outside of the lane" if lane else ""
        return "; ".join((text, *self.selection.notes))

    # What was learnt, and the way back.

    def delta(self) -> TaskVector:
        """What changed since the session began, as disjoint blocks; no dense difference is made. Works after leaving too."""
        if self.open:
            self._watch.settle()
        if self._watch.stale:
            self._opened().write_back()
        tensors = self._tensors()
        self._log().refuse_other(tensors)
        return task_vector(self.model, self._log(), tensors, self._fresh_names())

    def revert(self) -> None:
        """Puts back, bitwise, every entry the session has touched, heads and buffers included.

        Buffers that the model does not save (``persistent=False``) are no part of it: what a forward keeps there stays.
        In an open session training starts over: step 0, the configured rank, fresh optimizer state.

        Raises:
            RuntimeError: this session is closed and another is open on the model or a part of it.
        """
        log, tensors = self._log(), self._tensors()
        if not self.open:
            refuse_claimed(self.model, "the session cannot be reverted")
        log.refuse_other(tensors)
        for name in log:
            for rect, before in log.originals(name):
                write(tensors[name], rect, before)
        log.clear()
        self.num_steps, self.rank, self._watch.stale = 0, self.config.rank, False
        if self.open:
            self._restart()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed session needs, as tensors and plain values (``torch.load(weights_only=True)`` reads it).

        It holds what was touched, not the model: load it into a session on the same pretrained model.
        """
        self._opened()
        self._watch.settle()
        self._watch.refuse_stale()
        self._log().refuse_other(self._tensors())
        state = pack(self._log(), self._tensors(), fresh=self._fresh_names() | self._buffer_names())
        masters = {name: p.detach().clone() for name, p in self._masters(self.active).items()}
        return {
            "version": 1,
            "config": self.config.as_dict(),
            "num_steps": self.num_steps,
            "rank": self.rank,
            "masters": masters,
            **state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken, bit for bit; load the optimizer's own state after this.

        Raises:
            ValueError: another version, configuration or base model, or a damaged state; the session is as it was then.
        """
        check(state, self.config)
        self._opened()
        if self.num_steps or self._watch.stale:
            raise ValueError(
                f"session state goes into a fresh session; this one has taken {self.num_steps} steps: revert() first"
            )
        check_masters(state["masters"], self._masters(self._plan(state["num_steps"], state["rank"])))
        unpack(state, self._log(), self._tensors())
        self.num_steps, self.rank = state["num_steps"], state["rank"]
        self._restart()
        with torch.no_grad():
            for name, master in self._masters(self.active).items():
                master.copy_(state["masters"][name])

    # Inside.

    def _opened(self) -> Injection:
        if self._injection is None or not self.open:
            raise RuntimeError("the session is not open; use it inside `with paring.sliced(model, config) as session:`")
        return self._injection

    def _log(self) -> UndoLog:
        if self._undo is None:
            raise RuntimeError("the session was never entered; use `with paring.sliced(model, config) as session:`")
        return self._undo

    def _tensors(self) -> Mapping[str, Tensor]:
        """Every tensor the log can name; a tied weight is there under each of its names."""
        return ModelTensors(self.model)

    def _whole_names(self) -> set[str]:
        return {w.name for w in self._injection.wholes} if self._injection else set()

    def _fresh_names(self) -> set[str]:
        """Tensors of a task head that was found: unlike a module named in ``train_also``, it may differ between bases."""
        return self._whole_names() if self.selection.found else set()

    def _buffer_names(self) -> set[str]:
        return {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        }

    def _keep_whole(self) -> None:
        """Originals of modules trained whole, and of the buffers, which training changes by itself (batch norm)."""
        tensors = self._tensors()
        for name in sorted(self._whole_names() | self._buffer_names()):
            self._log().touch(name, tensors[name], whole(tensors[name]))

    def _plan(self, num_steps: int, rank: int) -> dict[str, Slice]:
        return schedules.plan(replace(self.config, rank=rank), self.matrices, num_steps)

    def _place(self) -> None:
        """Slices to where the schedule has them now."""
        plan = self._plan(self.num_steps, self.rank)
        for slot in self._slots:
            slice_ = plan.get(slot.layer.name)
            if slice_ == slot.slice:
                continue
            if slice_ is not None:
                for name, tensor, rect in slot.touched(slice_):
                    self._log().touch(name, tensor, rect)
            slot.place(slice_)
            for copy in (slot.copy, *slot.bias_copies):
                self._watch.moved(copy)

    def _restart(self) -> None:
        """After the weights were replaced: originals of the rest, working copies and optimizer state anew."""
        self._keep_whole()
        for slot in self._slots:
            slot.slice = None
        self._place()
        self._opened().load()
        self._watch.restarted()

    def _masters(self, active: Collection[str]) -> dict[str, nn.Parameter]:
        """Working copies that hold more than their weights do (half precision), by name, while ``active`` layers are."""
        out: dict[str, nn.Parameter] = {}
        for slot in self._slots:
            if slot.layer.name in active and slot.copy.dtype != slot.weight.dtype:
                copies = (slot.copy, *slot.bias_copies)
                out |= {f"{slot.layer.name}.{i}": copy for i, copy in enumerate(copies)}
        wholes = self._injection.wholes if self._injection else []
        return out | {w.name: w.master for w in wholes if w.master is not None}


def _rank() -> int:
    return torch.distributed.get_rank()
