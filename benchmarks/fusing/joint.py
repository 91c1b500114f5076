"""One model for all tasks, trained on all of them at once: what a merge can hope for. A body, and a head for each task.

Each step takes a batch of every task: each task is trained on the rows of its own fine-tune, in their order, at its rate.
"""

from collections.abc import Mapping
from hashlib import blake2b
from json import dumps
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusing.problem import TASKS, share_body
from paring.files import replacing
from quality import tasks
from quality.plan import runner
from quality.runs import WARMUP_STEPS

REVISION = 1


def joint(suite: str, seed: int, zoo: Path, results: Path) -> dict[str, float]:
    """Test accuracy by task; the model is kept in the zoo."""
    models = {task: tasks.fresh_model(suite, task, seed) for task in TASKS[suite]}
    share_body(models)
    about, rate = tasks.SUITES[suite], runner(suite, results, 1, zoo).rate("full")
    what = [suite, list(TASKS[suite]), seed, rate, about.num_steps, about.batch_size, REVISION]
    path = zoo / f"{suite}-joint-{seed}-{blake2b(dumps(what).encode(), digest_size=8).hexdigest()}.safetensors"
    if not path.exists():
        _train(suite, seed, models, rate, about.num_steps)
        with replacing(path) as temporary:
            save_file(_tensors(models), temporary)
    held = load_file(path)
    with torch.no_grad():
        for name, tensor in _tensors(models, copy=False).items():
            tensor.copy_(held[name])
    return {task: tasks.accuracy(model, suite, task, "test") for task, model in models.items()}


def _train(suite: str, seed: int, models: Mapping[str, nn.Module], rate: float, num_steps: int) -> None:
    parameters = list({id(p): p for model in models.values() for p in model.parameters()}.values())
    adam = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    batches = {task: tasks.training_batches(suite, task, seed) for task in models}
    for step in range(num_steps):
        for group in adam.param_groups:
            group["lr"] = rate * min((step + 1) / WARMUP_STEPS, (num_steps - step) / num_steps)
        for task, model in models.items():
            (model.train()(**next(batches[task])).loss / len(models)).backward()
        adam.step()
        adam.zero_grad()


def _tensors(models: Mapping[str, nn.Module], copy: bool = True) -> dict[str, Tensor]:
    """Body once, heads by task."""
    first = next(iter(models.values()))
    prefix = f"{first.base_model_prefix}."
    found = {name: t for name, t in first.state_dict().items() if name.startswith(prefix)}
    for task, model in models.items():
        found |= {f"{task}/{name}": t for name, t in model.state_dict().items() if not name.startswith(prefix)}
    return {name: t.clone() if copy else t for name, t in found.items()}
