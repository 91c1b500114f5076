"""The demo's numbers as tables. Everything said here is computed from the record; nothing is known beforehand."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

Record = Mapping[str, Any]
_ACCURACY = "test_accuracy"
# The ways to merge, by their keys in the record.
MERGES = {"fitted": "fitted merge", "average": "weight average", "ties": "TIES"}


def table(record: Record) -> str:
    """All tables, one under the other."""
    parts = [methods_table(record), *([fused_table(record)] if record["fused"] else []), kept_table(record)]
    return "\n\n".join([*parts, transfer_table(record)])


def methods_table(record: Record) -> str:
    """One row a method: its test accuracy by task, then what it costs (means over the tasks)."""
    tasks = [task["name"] for task in record["tasks"]]
    header = ["test accuracy", *tasks, "mean", "entries trained", "bytes to keep", "seconds"]
    untuned = [task["untuned_test_accuracy"] for task in record["tasks"]]
    rows = [["not tuned", *(f"{a:.3f}" for a in (*untuned, mean(untuned))), "0", "0", ""]]
    for method in record["methods"]:
        results = of_method(record, method["name"])
        accuracies = [result["test_accuracy"] for result in results]
        rows.append(
            [
                method["label"],
                *(f"{a:.3f}" for a in (*accuracies, mean(accuracies))),
                f"{mean(r['num_trainable'] for r in results):,.0f}",
                f"{mean(r['kept_bytes'] for r in results):,.0f}",
                f"{mean(r['seconds'] for r in results):.1f}",
            ]
        )
    notes = [
        "entries trained: at any one time, of "
        f"{record['base']['num_weights']:,}. bytes to keep: the delta file. seconds: training, a task.",
    ]
    return "\n".join([*_aligned([header, *rows]), *notes])


def fused_table(record: Record) -> str:
    """One row a merge: its test accuracy by task, each with its own head, beside the full fine-tunes'."""
    header = ["one model for all", *(task["name"] for task in record["tasks"]), "mean", "of the fine-tunes'"]
    own = [result["test_accuracy"] for result in of_method(record, "full")]
    rows = [["fine-tunes, a model each", *(f"{a:.3f}" for a in (*own, mean(own))), ""]]
    for key, label in MERGES.items():
        found = [result[key] for result in record["fused"]["results"]]
        rows.append([label, *(f"{a:.3f}" for a in (*found, mean(found))), f"{mean(found) / mean(own):.1%}"])
    return "\n".join(_aligned([header, *rows]))


def kept(record: Record) -> list[dict[str, Any]]:
    """What can be kept of all tasks: its name, bytes on disk and mean test accuracy."""
    count = len(record["tasks"])
    base = record["bank"]["checkpoint_bytes"] // record["bank"]["num_deltas"]
    slim = record["slim"]["results"]
    lines = [
        ("full fine-tunes, a checkpoint each", base * count, mean_of(record, "full", _ACCURACY)),
        *(
            (f"base, deltas of {label}", base + _sum(of_method(record, name), "kept_bytes"), mean_of(record, name, _ACCURACY))
            for name, label in (("full", "full fine-tuning"), ("moving", "moving slices"))
        ),
        ("base, slim deltas", base + _sum(slim, "num_bytes"), mean(s[_ACCURACY] for s in slim)),
    ]
    if record["fused"]:
        found = record["fused"]
        lines.append(("one fused model, a head each", found["num_bytes"], mean(r["fitted"] for r in found["results"])))
    return [{"name": name, "bytes": size, "mean_test_accuracy": reached} for name, size, reached in lines]


def kept_table(record: Record) -> str:
    count = len(record["tasks"])
    header = [f"kept of {'all ' if count > 1 else ''}{count} task{'s' if count > 1 else ''}", "bytes", "mean test accuracy"]
    rows = [[line["name"], f"{line['bytes']:,}", f"{line['mean_test_accuracy']:.3f}"] for line in record["kept"]]
    return "\n".join(_aligned([header, *rows]))


def transfer_table(record: Record) -> str:
    """The ends of the path and every method at its best lambda, on test rows."""
    found = record["transfer"]
    header = [f"base + lambda * delta ({found['task']})", "lambda", f"test {found['task']}", "test upright", "H-score"]
    places = [(name, found["ends"][key]["test"]) for key, name in (("base", "the base"), ("tuned", "the fine-tune"))]
    places += [(_of(m["method"], found["keep"]), m["test"]) for m in found["methods"]]
    rows = [[name, f"{p['lambda']:.1f}", *(f"{p[key]:.3f}" for key in ("tuned", "original", "h"))] for name, p in places]
    return "\n".join(_aligned([header, *rows]))


def of_method(record: Record, method: str) -> list[dict[str, Any]]:
    """The results of one method, in the order of the tasks."""
    return [result for result in record["results"] if result["method"] == method]


def mean_of(record: Record, method: str, field: str) -> float:
    """The mean of one number over the tasks."""
    return mean(result[field] for result in of_method(record, method))


def _of(method: str, keep: float) -> str:
    return method if method == "whole" else f"{method}, keep {keep:g}"


def _sum(found: Sequence[Record], field: str) -> int:
    return sum(one[field] for one in found)


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right, a rule under the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
