"""What ``paring tune`` prints while it trains: a line an evaluation."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):  # type: ignore[misc]
    """Collects what the Trainer logs and prints it with each evaluation.

    Args:
        metric: name of the one that is shown. say: takes the lines.
    """

    def __init__(self, metric: str, say: Callable[[str], None]) -> None:
        self._metric, self._say = metric, say
        self._last: dict[str, float] = {}
        self._begun, self._first = time.perf_counter(), 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        self._begun, self._first = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **objects: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            self._last = dict(logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **objects: Any,
    ) -> None:
        if metrics is None or not self._last or f"eval_{self._metric}" not in metrics or state.global_step == self._first:
            return
        left = (time.perf_counter() - self._begun) / (state.global_step - self._first) * (state.max_steps - state.global_step)
        where = ", ".join(
            f"{k.removeprefix('slice_')} {v:g}" for k, v in self._last.items() if k.startswith(("slice_", "window_"))
        )
        self._say(
            f"step {state.global_step:>5} of {state.max_steps}   loss {self._last['loss']:.4f}   "
            f"validation {self._metric} {metrics[f'eval_{self._metric}']:.4f}   rate {self._last['learning_rate']:.2e}   "
            f"{where}   {left:.0f} s left"
        )
        self._last = {}
