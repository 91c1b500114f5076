"""One fine-tune: a cell of the table. The same cell gives the same numbers: one thread, and a seed for all that is random."""

import time
from dataclasses import asdict, dataclass
from hashlib import blake2b
from json import dumps
from pathlib import Path
from typing import Any

import torch

from quality.methods import METHODS, Tuning, optimizer, prepare
from quality.tasks import SUITES, accuracy, fresh_model, training_batches

WARMUP_STEPS = 20
NUM_WATCHES = 6
REVISION = 1  # raised when a change here makes older results incomparable


@dataclass(frozen=True)
class Cell:
    """What is run: a task, a method, a learning rate, a seed, and for how many steps."""

    suite: str
    task: str
    method: str
    rate: float
    seed: int
    num_steps: int

    @property
    def key(self) -> str:
        what = {**asdict(self), "settings": METHODS[self.method].settings, "revision": REVISION}
        return blake2b(dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def run(cell: Cell, zoo: Path | None) -> dict[str, Any]:
    """Tunes and scores.

    Args:
        cell: what to run.
        zoo: folder in which what was learnt is kept, one file a cell; None: it is not kept.

    Returns:
        The cell's fields, ``key``, ``test`` and ``curve`` (step, validation accuracy), ``seconds`` of training on one thread,
        ``num_trainable``, ``kept_bytes``, and ``diverged``.
    """
    torch.set_num_threads(1)
    suite = SUITES[cell.suite]
    model = fresh_model(cell.suite, cell.task, cell.seed)
    tuning = prepare(METHODS[cell.method], model, suite.num_blocks)
    train = optimizer(tuning, cell.rate)
    batches = training_batches(cell.suite, cell.task, cell.seed)
    watch_at = {round(cell.num_steps * (i + 1) / NUM_WATCHES) for i in range(NUM_WATCHES)}
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    for step in range(cell.num_steps):
        start = time.perf_counter()
        for group in train.param_groups:
            group["lr"] = cell.rate * min((step + 1) / WARMUP_STEPS, (cell.num_steps - step) / cell.num_steps)
        loss = tuning.model(**next(batches)).loss
        loss.backward()
        train.step()
        tuning.after_step(train)
        train.zero_grad()
        seconds += time.perf_counter() - start
        if step + 1 in watch_at:
            if not torch.isfinite(loss):
                break
            curve.append((step + 1, accuracy(tuning.model, cell.suite, cell.task, "validation")))
    diverged = len(curve) < NUM_WATCHES
    out = {
        **asdict(cell),
        "key": cell.key,
        "curve": curve,
        "validation": 0.0 if diverged else curve[-1][1],
        "test": 0.0 if diverged else accuracy(tuning.model, cell.suite, cell.task, "test"),
        "seconds": seconds,
        "num_trainable": tuning.num_trainable,
        "kept_bytes": _kept_bytes(tuning),
        "diverged": diverged,
    }
    if zoo is not None and not diverged:
        _keep(tuning, zoo / f"{cell.suite}-{cell.task}-{cell.method}-{cell.seed}-{cell.key}.safetensors", out)
    if tuning.session is not None:
        tuning.session.close()
    return out


def _kept_bytes(tuning: Tuning) -> int:
    if tuning.session is not None:
        return int(tuning.session.delta().nbytes)
    return sum(p.numel() * p.element_size() for p in tuning.parameters)


def _keep(tuning: Tuning, path: Path, facts: dict[str, Any]) -> None:
    """A delta of slices; the trained tensors of anything else."""
    from safetensors.torch import save_file

    from paring import save_delta
    from paring.files import replacing

    if tuning.session is not None:
        save_delta(tuning.session.delta(), path, facts)
        return
    trained = {name: p.detach().contiguous() for name, p in tuning.model.named_parameters() if p.requires_grad}
    with replacing(path) as temporary:
        save_file(trained, temporary, {"facts": dumps(facts)})
