"""``SliceCallback``: slices in any Hugging Face Trainer, without a subclass.

    with paring.sliced(model, config) as session:
        trainer = Trainer(model=model, ..., callbacks=[paring.SliceCallback(session)])
        trainer.train()
    delta = session.delta()

The Trainer's own optimizer finds the working copies among the model's parameters. Its checkpoints hold the whole model, as
they always do, and ``slices.pt`` beside it; resuming from one continues bit for bit.
"""

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from paring.trainer.checkpoints import load_slices, save_slices
from paring.trainer.plateau import Plateau
from paring.tune.optimizers import owned_by
from paring.tune.session import SliceSession


class SliceCallback(TrainerCallback):  # type: ignore[misc]
    """Calls ``session.step()`` after every optimizer step, and keeps the session's state in the Trainer's checkpoints.

    Args:
        session: open, on the model that is trained.
        plateau: lowers rates and ranks when the evaluation metric stops improving; None: never.
        verbose: print a line at every move.
        resume_from: the checkpoint folder resumed from, where it is not the Trainer's own ``output_dir/checkpoint-N``.
    """

    def __init__(
        self,
        session: SliceSession,
        *,
        plateau: Plateau | None = None,
        verbose: bool = False,
        resume_from: str | Path | None = None,
    ) -> None:
        self.session, self.plateau = session, plateau
        self._verbose, self._resume_from = verbose, resume_from
        self._writes = True  # slices.pt, at every checkpoint

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        """Raises ValueError when the Trainer does not train the session's parameters."""
        session = self.session
        if not session.open:
            raise ValueError(
                "SliceCallback: its session is closed; train inside `with paring.sliced(model, config) as session:`"
            )
        optimizer = objects.get("optimizer")
        if optimizer is not None and not owned_by(optimizer, session.parameters()):
            raise ValueError(
                "SliceCallback: the Trainer's optimizer holds none of the session's parameters; give the Trainer the model the "
                "session is on, and enter the session before the Trainer makes its optimizer"
            )
        if state.global_step and not session.num_steps:
            folder = self._resume_from or Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            load_slices(folder, session, self.plateau)
        if session.num_steps != state.global_step:
            raise ValueError(
                f"SliceCallback: the session has taken {session.num_steps} steps and the Trainer {state.global_step}; "
                "use a fresh session, and resume_from for a checkpoint outside output_dir"
            )

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        before = self.session.active
        self.session.step()
        if self._verbose and self.session.active != before and state.is_world_process_zero:
            where = ", ".join(f"{k.removeprefix('slice_')} {v}" for k, v in position(self.session).items())
            print(f"paring: step {self.session.num_steps}: slices move to {where}{_rate(objects)}", file=sys.stderr)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **objects: Any,
    ) -> None:
        if self.plateau is None or metrics is None or not self.session.open or not self.plateau.observe(metrics):
            return
        rates = self.plateau.lower_rates(objects["optimizer"], objects["lr_scheduler"])
        rank = self.plateau.next_rank(self.session.rank)
        if rank != self.session.rank:
            self.session.narrow(rank)
        if self._verbose and state.is_world_process_zero:
            print(
                f"paring: step {self.session.num_steps}: no improvement for {self.plateau.tolerance} evaluation(s); "
                f"rank {self.session.rank}, base learning rate {max(rates):.3g}",
                file=sys.stderr,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **objects: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self.session.open:
            logs |= position(self.session)
            if state.log_history:
                state.log_history[-1] |= position(self.session)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        if self._writes and state.is_world_process_zero and self.session.open:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            if folder.is_dir():
                save_slices(folder, self.session, self.plateau, originals=True)


def position(session: SliceSession) -> dict[str, float]:
    """Where the slices are, as numbers for a log: ``slice_row`` or ``slice_column`` (the first entry, in the first active
    layer), ``slice_rank``, and with a layer window its lowest and highest block."""
    active = session.active
    slice_ = next(iter(active.values()))
    out: dict[str, float] = {f"slice_{slice_.axis}": slice_.start, "slice_rank": slice_.width}
    if session.config.layer_window is not None:
        blocks = [session.matrices[n].block for n in active]
        out |= {"window_from_block": min(blocks), "window_to_block": max(blocks)}
    return out


def _rate(objects: dict[str, Any]) -> str:
    optimizer = objects.get("optimizer")
    return "" if optimizer is None else f"; learning rate {optimizer.param_groups[0]['lr']:.3g}"
