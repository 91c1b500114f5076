"""``SliceTrainer``: Hugging Face's Trainer, training slices.

    trainer = paring.SliceTrainer(model=model, args=training_args, train_dataset=..., rank=5, move_steps=1000)
    trainer.run()                      # or trainer.train(resume_from_checkpoint=...)
    trainer.session.delta()            # what was learnt; trainer.session.revert() takes it back

A session is open while ``train`` runs and no longer. Checkpoints hold what was learnt (``slices.pt``) and the optimizer's
state; ``save_full=True`` adds the whole model, in the files a plain ``from_pretrained`` reads.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from paring.delta.files import save_delta
from paring.trainer.callback import SliceCallback, position
from paring.trainer.checkpoints import load_slices, save_slices
from paring.trainer.paper import take_over
from paring.trainer.plateau import Plateau
from paring.tune.config import SliceConfig
from paring.tune.session import SliceSession
from paring.tune.slices import Axis

DELTA_FILE = "model.delta.safetensors"


class SliceTrainer(Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` that trains slices; the arguments are the paper's (project page) beside the Trainer's own.

    Args:
        model: unwrapped; for several processes start the script with ``torchrun``.
        args, training_args: the Trainer's ``TrainingArguments``, under either name.
        config: all settings of the slices at once, instead of the eight below.
        rank, move_steps, position, max_position, bias, targets: as in ``SliceConfig``; rank 5 and 1000 steps by default.
        peft_modes: ``SliceConfig``'s ``modes``.
        layer_window: as in ``SliceConfig``.
        learning_rate_decay, min_learning_rate, rank_decay, min_rank, tolerance: see ``paring.trainer.plateau``. The metric is
            ``metric_for_best_model``, or the evaluation loss.
        verbose: print what is sliced, every move and every decay.
        save_full: checkpoints and ``save_model`` also write the whole model.
        trainer_options: the Trainer's other arguments (``train_dataset``, ``data_collator``, ``compute_metrics`` ...).

    Attributes:
        session: of the last call of ``train``; None before.

    Raises:
        ValueError: settings that contradict each other or the model; nothing was changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        training_args: TrainingArguments | None = None,
        config: SliceConfig | None = None,
        move_steps: int | None = None,
        rank: int | None = None,
        position: int | None = None,
        max_position: int | None = None,
        bias: bool | None = None,
        peft_modes: Sequence[Axis] | None = None,
        targets: Sequence[str] | None = None,
        layer_window: int | None = None,
        learning_rate_decay: float | None = None,
        learnig_rate_decay: float | None = None,
        min_learning_rate: float = 0.0,
        tolerance: int | None = None,
        tollerance: int | None = None,
        rank_decay: int = 0,
        min_rank: int = 1,
        verbose: bool = True,
        save_full: bool = False,
        **trainer_options: Any,
    ) -> None:
        args = _one("args", args, "training_args", training_args)
        given: dict[str, Any] = {
            "move_steps": move_steps,
            "rank": rank,
            "position": position,
            "max_position": max_position,
            "bias": bias,
            "modes": peft_modes,
            "targets": targets,
            "layer_window": layer_window,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if config is not None and given:
            raise ValueError(f"SliceTrainer: config was given and {', '.join(given)} too; set them in config")
        self.config = config or SliceConfig(**({"rank": 5, "move_steps": 1000} | given))
        plateau = Plateau(
            tolerance=_one("tolerance", tolerance, "tollerance", tollerance) or 1,
            learning_rate_decay=_one("learning_rate_decay", learning_rate_decay, "learnig_rate_decay", learnig_rate_decay)
            or 0.0,
            min_learning_rate=min_learning_rate,
            rank_decay=rank_decay,
            min_rank=min(min_rank, self.config.rank),
        )
        for name in ("model_init", "optimizers"):
            if trainer_options.get(name) not in (None, (None, None)):
                raise ValueError(
                    f"SliceTrainer: {name} cannot be used, since the slices' parameters exist only while it trains; "
                    "open a session with paring.sliced and give any Trainer a SliceCallback"
                )
        take_over(model)
        SliceSession(model, self.config)  # refuses what does not fit before anything else is done
        super().__init__(model=model, args=args, **trainer_options)
        if not plateau.idle and (self.eval_dataset is None or self.args.eval_strategy == "no"):
            raise ValueError("SliceTrainer: rates and ranks decay by evaluations; set eval_strategy and eval_dataset")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise ValueError(
                "SliceTrainer: several devices are used by DistributedDataParallel; start the script with torchrun"
            )
        plateau.metric = self.args.metric_for_best_model or "loss"
        plateau.greater_is_better = (
            self.args.greater_is_better if self.args.greater_is_better is not None else not plateau.metric.endswith("loss")
        )
        self.plateau = None if plateau.idle else plateau
        self.session: SliceSession | None = None
        self._verbose, self._save_full = verbose, save_full

    def run(self, resume_from_checkpoint: str | bool | None = None) -> Any:
        """Trains; the paper's name for ``train``."""
        return self.train(resume_from_checkpoint=resume_from_checkpoint)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. Afterwards, also after an exception, the model is plain and holds what was learnt."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.session is not None:
                self.session.close()

    # What the Trainer calls.

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._opened()
        return super()._inner_training_loop(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's.

        Raises:
            FloatingPointError: the loss is not finite; the weights are those of the last step that was.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1}; the model holds the weights of step "
                f"{self.state.global_step}, and checkpoints in {self.args.output_dir} are untouched: lower the learning rate "
                "(slices want a high one, but not that high), or look at the batch"
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, and where the slices are."""
        if "loss" in logs and self.session is not None and self.session.open:
            logs |= position(self.session)
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self._save_full:
            super()._save(str(folder), state_dict)
        else:
            if hasattr(self.model, "config"):
                self.model.config.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / "training_args.bin")
        if self.session is None:
            return
        if self.session.open:
            save_slices(folder, self.session, self.plateau)
        else:
            save_delta(self.session.delta(), folder / DELTA_FILE, {"slices": self.config.as_dict()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_slices(resume_from_checkpoint, self._opened(), self.plateau)

    def _load_best_model(self) -> None:
        session = self._opened()
        session.revert()
        load_slices(self.state.best_model_checkpoint, session, self.plateau)

    def _opened(self) -> SliceSession:
        """The session of this call of ``train``."""
        if self.session is None or not self.session.open:
            for callback in [c for c in self.callback_handler.callbacks if isinstance(c, SliceCallback)]:
                self.remove_callback(callback)
            take_over(self.model)
            self.session = SliceSession(self.model, self.config, verbose=self._verbose).__enter__()
            callback = SliceCallback(self.session, plateau=self.plateau, verbose=self._verbose)
            callback._writes = False  # _save has
            self.add_callback(callback)
        return self.session


def _one(name: str, value: Any, other_name: str, other: Any) -> Any:
    """Whichever of two names was used."""
    if value is not None and other is not None:
        raise ValueError(f"SliceTrainer: {name} and {other_name} are the same setting; give one of them")
    return other if value is None else value
