"""Seconds and bytes of tuning steps.

Bytes are exact counts of tensor storages, each once, however many views show it. What the process as a whole holds
(RSS) would add the allocator's caches, which are those of whatever ran before.
"""

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cost.methods import Tuning

Storages = dict[int, torch.UntypedStorage]  # by address; holding them keeps the addresses from being used again


@dataclass(frozen=True)
class Clock:
    """Wall time on a device, and the precision that steps run in."""

    device: str = "cpu"
    autocast: bool = False

    def now_s(self) -> float:
        """When all work queued so far is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()


# Time.


def step(tuning: Tuning, batch: dict[str, Tensor], clock: Clock) -> float:
    """Seconds of one tuning step: forward, backward, optimizer, and whatever the method does after it."""
    start_s = clock.now_s()
    _forward(tuning, batch, clock).backward()
    tuning.optimizer.step()
    if tuning.session:
        tuning.session.step()
    tuning.optimizer.zero_grad()
    return clock.now_s() - start_s


def step_with_session_apart(tuning: Tuning, batch: dict[str, Tensor], clock: Clock) -> tuple[float, float]:
    """Seconds of one step, and of the ``session.step()`` in it."""
    assert tuning.session
    start_s = clock.now_s()
    _forward(tuning, batch, clock).backward()
    tuning.optimizer.step()
    session_start_s = clock.now_s()
    tuning.session.step()
    session_s = clock.now_s() - session_start_s
    tuning.optimizer.zero_grad()
    return clock.now_s() - start_s, session_s


def moves(tuning: Tuning, batch: dict[str, Tensor], clock: Clock, times: int) -> dict[str, list[float]]:
    """Seconds of moves and of the steps around them, ``times`` each.

    The steps up to the one before a move are not taken, only counted: ``session.step()`` alone.
    """
    session = tuning.session
    assert session and session.config.move_steps
    out: dict[str, list[float]] = {"session_step_s": [], "move_s": [], "step_with_move_s": []}
    for _ in range(times):
        while (session.num_steps + 2) % session.config.move_steps:
            session.step()
        out["session_step_s"].append(step_with_session_apart(tuning, batch, clock)[1])
        whole_s, move_s = step_with_session_apart(tuning, batch, clock)
        out["step_with_move_s"].append(whole_s)
        out["move_s"].append(move_s)
    return out


def enter_and_leave(tuning: Tuning, clock: Clock, times: int) -> dict[str, list[float]]:
    """Seconds of entering a session on the model and of leaving it, ``times`` each; the tuning's own is closed."""
    import paring

    assert tuning.session
    tuning.close()
    out: dict[str, list[float]] = {"enter_s": [], "leave_s": []}
    for _ in range(times):
        start_s = clock.now_s()
        session = paring.sliced(tuning.model, tuning.session.config, verbose=False).__enter__()
        entered_s = clock.now_s()
        session.close()
        out["leave_s"].append(clock.now_s() - entered_s)
        out["enter_s"].append(entered_s - start_s)
    return out


def _forward(tuning: Tuning, batch: dict[str, Tensor], clock: Clock) -> Tensor:
    with clock.precision():
        return tuning.model(**batch).loss


# Bytes.


@dataclass(frozen=True)
class Sizes:
    """Bytes of one step, and the entries it trains.

    Attributes:
        num_trainable: entries trained in this step.
        trained_bytes: of the parameters given to the optimizer.
        saved_bytes: kept for backward by autograd, without the model's own parameters and buffers and the batch.
        gradient_bytes, optimizer_bytes: after the step.
        resident_bytes: of all tensors that live between steps, gradients included, beyond the frozen model's.
        peak_step_bytes: on a GPU, the most allocated in a step beyond what was before it.
    """

    num_trainable: int
    trained_bytes: int
    saved_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    resident_bytes: int
    peak_step_bytes: int | None


def sizes(tuning: Tuning, batch: dict[str, Tensor], clock: Clock, before: Storages) -> Sizes:
    """Takes one step and counts; two on a GPU.

    Args:
        tuning: before its first step.
        batch: the data.
        clock: for its device and precision.
        before: all tensors' storages when the model was there and the method not yet (``alive()``).
    """
    num_trainable = tuning.num_trainable
    saved = _Saved(tuning.model, batch)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        loss = _forward(tuning, batch, clock)
    saved_bytes = total_bytes(saved.storages)
    del saved
    loss.backward()
    del loss
    tuning.optimizer.step()
    if tuning.session:
        tuning.session.step()
    gradients = [p.grad for p in tuning.parameters if p.grad is not None]
    state = [v for entry in tuning.optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
    resident = {**alive(), **storages(gradients)}  # a gradient has no Python object until it is looked at
    counted = Sizes(
        num_trainable=num_trainable,
        trained_bytes=sum(p.numel() * p.element_size() for p in tuning.parameters),
        saved_bytes=saved_bytes,
        gradient_bytes=total_bytes(storages(gradients)),
        optimizer_bytes=total_bytes(storages(state)),
        resident_bytes=total_bytes({k: v for k, v in resident.items() if k not in before}),
        peak_step_bytes=None,
    )
    tuning.optimizer.zero_grad()
    if clock.device != "cuda":
        return counted
    del gradients, resident
    return Sizes(**{**vars(counted), "peak_step_bytes": _peak(tuning, batch, clock)})


class _Saved:
    """Storages that autograd keeps alive; a parameter seen through a view (a transposed weight) is a parameter still.

    The batch's own tensors do not count: the caller holds them anyway (a slice of a patch embedding keeps the images).
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self._own = storages([*model.parameters(), *model.buffers(), *batch.values()])
        self.storages: Storages = {}

    def pack(self, tensor: Tensor) -> Tensor:
        self.storages |= {k: v for k, v in storages([tensor]).items() if k not in self._own}
        return tensor


def _peak(tuning: Tuning, batch: dict[str, Tensor], clock: Clock) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(tuning, batch, clock)
    return torch.cuda.max_memory_allocated() - before


def alive() -> Storages:
    """The storages of every tensor made since ``few_objects`` began and known to Python."""
    gc.collect()
    return storages(o for o in gc.get_objects() if issubclass(type(o), Tensor))


@contextmanager
def few_objects() -> Iterator[None]:
    """Leaves the several 100,000 objects of the loaded libraries out of collections and searches."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def storages(tensors: Iterable[Tensor]) -> Storages:
    out: Storages = {}
    for tensor in tensors:
        parts = [tensor]
        if tensor.layout == torch.sparse_coo:
            parts = [tensor._indices(), tensor._values()]
        for part in parts:
            storage = part.untyped_storage()
            if storage.device.type != "meta" and storage.nbytes():
                out[storage.data_ptr()] = storage
    return out


def total_bytes(of: Storages) -> int:
    return sum(storage.nbytes() for storage in of.values())
