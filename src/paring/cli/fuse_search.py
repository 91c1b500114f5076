"""The options of ``paring fuse`` by which merges are searched and fitted on rows of tasks. See ``paring.recipes.fusion``."""

import argparse
from typing import Any

_PRUNING = ("magnitude", "rescaled", "dare", "della", "nps", "fitted")
_SUBSPACES = ("magnitude", "layer", "kind", "magnitude*kind", "random")
_VALUES = ("fp32", "bf16", "fp16", "int8", "int4", "sign")
_TASKS = ("text-classification", "image-classification", "causal-lm")
_SPLITS = ("calibration", "validation", "test")
_OF_TASKS = ("task", "task_config", "text_column", "label_column", "max_length")
EXAMPLES = """\
examples:
  paring fuse merge.yml merged
  paring fuse merge.yml merged --calibration mail=mail-c.csv news=news-c.csv --fit
  paring fuse merge.yml merged --calibration mail=mail-c.csv news=news-c.csv --validation mail=mail-v.csv news=news-v.csv
  paring fuse merge.yml merged --calibration mail=mail-c.csv news=news-c.csv --prune nps --keep 0.1 --layer-groups 4 \\
    --search search --test mail=mail-t.csv news=news-t.csv
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds them; one that is not given has no attribute."""

    def option(group: Any, *names: str, **more: Any) -> None:
        group.add_argument(*names, default=argparse.SUPPRESS, **more)

    rows = parser.add_argument_group(
        "rows of each model's task, by which weights are searched (NAME: the last part of the model's path; no row in two "
        "splits of any task)"
    )
    for split, what in zip(
        _SPLITS, ("to search on", "to choose on (a share of those to search on)", "to report on"), strict=True
    ):
        option(rows, f"--{split}", nargs="+", metavar="NAME=FILE", help=what)
    option(rows, "--held-out", type=float, metavar="SHARE", help="of the rows to search on, to choose on (0.25)")
    option(rows, "--batch-size", type=int, metavar="N", help="rows scored, or fitted on, at a time (32)")
    option(rows, "--task", nargs="+", metavar="[NAME=]TASK", help=f"where a model does not say: {', '.join(_TASKS)}")
    option(rows, "--config", nargs="+", dest="task_config", metavar="[NAME=]DIR", help="with config.json, where it has none")
    for name in ("text-column", "label-column"):
        option(rows, f"--{name}", nargs="+", metavar="[NAME=]NAME", help="(as tuned)")
    option(rows, "--max-length", nargs="+", metavar="[NAME=]N", help="tokens a text is cut to (as tuned)")

    fit = parser.add_argument_group(
        "a fit: merged values and heads tuned to answer as the fine-tunes do (weights are searched before only if asked for)"
    )
    option(
        fit, "--fit", action="store_true", help="the merge as configured, or with the best of a few equal weights, is fitted"
    )
    option(fit, "--fit-steps", type=int, metavar="N", help="batches of every task (720)")
    option(
        fit, "--fit-rate", type=float, metavar="SHARE", help="the first attempt's, of the task vectors' root mean square (0.12)"
    )
    option(fit, "--fit-head-rate", type=float, metavar="SHARE", help="of heads, of their root mean square; 0: they stay (0.1)")

    search = parser.add_argument_group("the search")
    option(search, "--objective", choices=("mean", "worst"), help="over tasks, of scores over the fine-tunes' (mean)")
    option(search, "--by", choices=("accuracy", "loss"), help="what a score is; loss: the likelihood exp(-loss) (accuracy)")
    option(search, "--layer-groups", type=int, metavar="N", help="runs of layers with weights of their own, too (1)")
    option(search, "--budget", type=int, metavar="N", help="evaluations of a search (200)")
    option(search, "--most", type=float, metavar="WEIGHT", help="the largest weight that is tried (2)")
    option(search, "--own-heads", action="store_true", help="each task keeps its head, though the base has one, too")
    option(search, "--seed", type=int, metavar="N", help="of the search and whatever is drawn for it (0)")
    option(search, "--search", metavar="DIR", help="keeps every evaluation there; the same command goes on after a kill")
    option(search, "--workers", type=int, metavar="N", help="Ray workers that score merges (0: this process)")

    prune = parser.add_argument_group("pruning each difference first (merge_method: nps does)")
    option(prune, "--prune", choices=_PRUNING, metavar="METHOD", help=", ".join(_PRUNING))
    option(prune, "--keep", type=float, metavar="SHARE", help="of all entries, in (0, 1] (0.1)")
    option(prune, "--subspaces", choices=_SUBSPACES, metavar="KIND", help=f"of nps: {', '.join(_SUBSPACES)} (magnitude*kind)")
    option(prune, "--parts", type=int, metavar="M", help="of nps: subspaces of magnitude, layer and random (8)")
    option(prune, "--steps", type=int, metavar="N", help="of fitted (360)")
    option(prune, "--values", choices=_VALUES, help="how what is left is stored (fp16)")
    option(prune, "--pruned", metavar="DIR", help="a new folder for what is left, a bank (OUT.pruned)")


_OWN = (
    *_SPLITS,
    *_OF_TASKS,
    *("held_out", "batch_size", "objective", "by", "layer_groups", "budget", "most", "own_heads", "seed", "search", "workers"),
    *("prune", "keep", "subspaces", "parts", "steps", "values", "pruned"),
    *("fit", "fit_steps", "fit_rate", "fit_head_rate"),
)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given.

    Raises:
        ValueError: there are some, and no calibration rows.
    """
    found = {name: getattr(options, name) for name in _OWN if hasattr(options, name)}
    if found and "calibration" not in found:
        first = next(iter(found)).replace("task_config", "config").replace("_", "-")
        raise ValueError(f"--{first} is of a merge with rows of the tasks; give --calibration NAME=FILE of each model")
    for name in ("fit_steps", "fit_rate", "fit_head_rate"):
        if name in found and "fit" not in found:
            raise ValueError(f"--{name.replace('_', '-')} is of a fit; give --fit, too, or leave it out")
    return found


def planned(config: str, given: dict[str, Any]) -> tuple[Any, list[str]]:
    """The configuration of a merge like the one that will be made, with equal weights where they are searched; and what comes
    before it is written."""
    from paring.fuse.config import read_config
    from paring.fusion.groups import ALL
    from paring.recipes.fusion.named import Weights, settled, tasks_of, with_weights

    settings, read = _settings(given), read_config(config)
    names = tasks_of(read, searched=settings.searches)
    told = []
    if "nps" in (settings.prune, read.method.name):
        told += [
            f"prune   {len(names)} searches of {settings.evaluations} candidates, each scored on its task's calibration rows"
        ]
    if settings.searches:
        count = settings.evaluations * (2 if settings.layer_groups > 1 else 1)  # by task, then by task and layers
        told += [f"search  {count} merges, each scored on all calibration rows; beside what is above"]
    if settings.fit:
        told += [f"fit     {settings.fit_steps} steps, a batch of every task each; beside what is above"]
    if not settings.searches and settled(read):
        return read, told
    return with_weights(read, Weights({name: [1.0] for name in names}, ALL)), told


def run(config: str, out: str, given: dict[str, Any], **engine: Any) -> None:
    """Searches, and writes the merge."""
    from paring.fuse.config import read_config
    from paring.recipes.fusion.named import tasks_of
    from paring.recipes.fusion.run import fuse_searched

    read = read_config(config)
    names = list(tasks_of(read, searched=_settings(given).searches))
    tasks = _tasks({k: given.pop(k) for k in [*given] if k in _SPLITS or k in _OF_TASKS}, names)
    fuse_searched(read, out, _settings(given), tasks=tasks, **engine)


def _settings(given: dict[str, Any]) -> Any:
    from paring.recipes.fusion.settings import FusionSettings

    return FusionSettings(**{name: value for name, value in given.items() if name not in (*_SPLITS, *_OF_TASKS)})


def _tasks(given: dict[str, list[str]], names: list[str]) -> dict[str, Any]:
    """What is given of each task, by name."""
    from paring.recipes.calibration import Files
    from paring.recipes.fusion.settings import TaskOptions

    found: dict[str, dict[str, Any]] = {}
    for option, texts in given.items():
        called = f"--{option.replace('task_config', 'config').replace('_', '-')}"
        for text in texts:
            name, equals, value = text.partition("=")
            if equals and name in names:
                meant = [name]
            elif option in _SPLITS and len(names) > 1:
                got = f"no model is called {name!r}" if equals else "it names no model"
                raise ValueError(f"{called} {text}: {got}; expected NAME=FILE, NAME one of {', '.join(names)}")
            else:
                meant, value = names, text
            for task in meant:
                if option in found.setdefault(task, {}):
                    raise ValueError(f"{called} is given twice for {task!r}; expected once, or NAME=…")
                found[task][option] = _number(value, called) if option == "max_length" else value
    made = {}
    for name, values in found.items():
        if "calibration" not in values:
            raise ValueError(f"no --calibration of {name!r}; expected rows of every model's task to search on")
        files = Files(**{split: values.pop(split) for split in _SPLITS if split in values})
        if "task_config" in values:
            values["config"] = values.pop("task_config")
        made[name] = TaskOptions(files=files, **values)
    return made


def _number(text: str, called: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{called} {text}: expected a whole number, at least 1") from None
