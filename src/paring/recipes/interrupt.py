"""Ctrl-C while training: the step at work is finished, a checkpoint is written, and the run can be resumed."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Stops the Trainer, with a checkpoint, at the end of the step in which it was asked to.

    Attributes:
        asked: set by a signal; whoever trains reads it afterwards.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks to stop; a second one interrupts at once. As before on leaving."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            print("\nparing: stopping at the end of this step, with a checkpoint (again: at once)", file=sys.stderr)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False
