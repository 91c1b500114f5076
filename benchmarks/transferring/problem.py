"""A fine-tune of the zoo as ``paring transfer`` sees it: the tuned task, and what the base could do before.

Of the ViT the original task is upright digits, read by the one head that base and fine-tune have. MiniLM comes without a head:
the original tasks of a fine-tune are the other docstring tasks, each with a head trained on the base's frozen body, which
stays with its task (``--original-head``).
"""

from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fusing.problem import share_body
from paring.recipes.scoring import Scoring, scoring
from paring.recipes.settings import Task
from paring.recipes.transfer.problem import TUNED, Problem, Side
from paring.tasks.digits import load_splits
from quality import tasks
from slimming.finetunes import HEAD, LESSON_ROWS, NUM_CALIBRATION, fine_tune

UPRIGHT = "upright"
SPLITS = ("calibration", "validation", "test")
_SCORED_ROWS = {"digits": 256, "docstrings": 32}  # in a batch of validation and test rows
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of a logistic regression


def problem(suite: str, task: str, seed: int, zoo: Path, results: Path) -> Problem:
    """Loads the fine-tune, or tunes it where the zoo has none; all on one thread."""
    tune = fine_tune(suite, task, "full", seed, zoo, results)
    tuned = _side(TUNED, suite, task, tune.model)
    if suite == "digits":
        return Problem(tune.vector, tuned, (_side(UPRIGHT, suite, UPRIGHT, tune.model),), ())
    others = {other: headed(suite, other, seed) for other in originals(suite, task)}
    share_body({task: tune.model, **others})
    return Problem(tune.vector, tuned, tuple(_side(other, suite, other, model) for other, model in others.items()), ())


def originals(suite: str, task: str) -> tuple[str, ...]:
    """Names of the original tasks of a fine-tune of ``task``."""
    return (UPRIGHT,) if suite == "digits" else tuple(other for other in tasks.SUITES[suite].tasks if other != task)


def headed(suite: str, task: str, seed: int) -> nn.Module:
    """The base with a head for a task: a logistic regression on what its frozen body gives, strength by validation rows."""
    model = tasks.fresh_model(suite, task, seed).eval()
    (train, labels), (validation, answers) = (_features(model, suite, task, split) for split in ("train", "validation"))
    best: tuple[float, LogisticRegression] | None = None
    for strength in _STRENGTHS:
        found = LogisticRegression(C=strength, max_iter=5000).fit(train, labels)
        score = float(found.score(validation, answers))
        if best is None or score > best[0]:
            best = score, found
    assert best is not None
    with torch.no_grad():
        _put(model, best[1])
    return model


def _put(model: nn.Module, found: LogisticRegression) -> None:
    """A regression as the model's head; of two classes the regression has one row, for the second."""
    weight, bias = torch.tensor(found.coef_), torch.tensor(found.intercept_)
    if len(weight) == 1:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    head = model.get_submodule(HEAD.rstrip("."))
    head.load_state_dict({"weight": weight.float(), "bias": bias.float()})


@torch.no_grad()
def _features(model: nn.Module, suite: str, task: str, split: str) -> tuple[Tensor, Tensor]:
    """What the head is given ``[n, width]``, and labels ``[n]``."""
    body = model.get_submodule(str(model.base_model_prefix))
    found, labels = [], []
    for batch in scoring("text-classification", _rows(suite, task, split), tasks._collate, _SCORED_ROWS[suite]).batches:
        labels.append(batch.pop("labels"))
        found.append(body(**batch).pooler_output)
    return torch.cat(found), torch.cat(labels)


def _side(name: str, suite: str, task: str, model: nn.Module) -> Side:
    return Side(name, model, {split: _scoring(suite, task, split) for split in SPLITS}, f"{suite} {task}")


def _scoring(suite: str, task: str, split: str) -> Scoring:
    rows = _rows(suite, task, split)
    size = _SCORED_ROWS[suite]
    if split == "calibration":
        rows, size = rows[:NUM_CALIBRATION], LESSON_ROWS[suite]
    kind: Task = "image-classification" if suite == "digits" else "text-classification"
    return scoring(kind, rows, tasks._collate, size).to("cpu")


def _rows(suite: str, task: str, split: str) -> list[dict[str, object]]:
    if task != UPRIGHT:
        return tasks._rows(suite, task, split)
    examples = load_splits()[split]  # type: ignore[index]
    return [{"pixel_values": i, "labels": y} for i, y in zip(examples.images, examples.labels.tolist(), strict=True)]
