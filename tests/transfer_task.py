"""Digits: a vision transformer that reads them upright (the original task), and tunings for digits turned by a quarter."""

import copy
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import paring
from paring.tasks.digits import fit, load_splits, named_shifts, one_thread, pretrained
from paring.tasks.digits.folders import write_image_folder

TURNED = named_shifts(["turned"])[0]


@dataclass(frozen=True)
class Digits:
    """Paths of the base, of two deltas, and of image folders with the splits below.

    Attributes:
        whole: all weights tuned, the head among them (differences).
        headed: the same body, and a new head for labels "d0" to "d9" in another order of outputs.
        named: the turned digits with these labels.
    """

    base: Path
    whole: Path
    headed: Path
    upright: Path
    turned: Path
    named: Path

    def command(self, delta: Path, *more: str, splits: tuple[str, ...] = ("calibration", "validation", "test")) -> list[str]:
        """Arguments of the command."""
        rows = [a for s in splits for a in (f"--{s}", str(self.turned / s))]
        rows += [a for s in splits if s != "calibration" for a in (f"--original-{s}", str(self.upright / s))]
        return ["transfer", str(self.base), str(delta), *rows, *more]


@cache
def digits() -> Digits:
    """Removed with the system's temporary files; made once for each process."""
    at = Path(mkdtemp(prefix="paring-tests-"))
    splits = ("calibration", "validation", "test")
    upright, turned = (write_image_folder(s, at / n, splits) for s, n in ((None, "upright"), (TURNED, "turned")))
    base = pretrained(steps=160)
    base.save_pretrained(at / "base")
    tuned = tuning(base)
    config = {"config": tuned.config.to_dict()}
    paring.save_delta(paring.diff(base, tuned), at / "whole.delta.safetensors", config)

    state, before = ({n: t.detach().clone() for n, t in m.state_dict().items()} for m in (tuned, base))
    order = torch.arange(10).roll(1)  # output i is digit i - 1
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][order]
        before.pop(name)
    config["config"] |= {"id2label": {str(i): f"d{(i - 1) % 10}" for i in range(10)}}
    paring.save_delta(paring.diff(before, state), at / "headed.delta.safetensors", config)
    for split in splits:
        for label in range(10):
            shutil.copytree(turned / split / str(label), at / "named" / split / f"d{label}")
    return Digits(at / "base", at / "whole.delta.safetensors", at / "headed.delta.safetensors", upright, turned, at / "named")


def tuning(base: nn.Module, steps: int = 60) -> nn.Module:
    """The base, tuned whole on turned digits."""
    model = copy.deepcopy(base)
    with one_thread():
        fit(model, model.parameters(), TURNED(load_splits()["train"]), steps=steps, rate=2e-3, seed=0)
    return model.eval()
