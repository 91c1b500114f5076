"""The demo's numbers as text. Everything said here is computed from the record; nothing is known beforehand."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

Record = Mapping[str, Any]


def table(record: Record) -> str:
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


def conclusions(record: Record) -> list[str]:
    """What the numbers show, as sentences."""
    accuracy = {m["name"]: mean_of(record, m["name"], "test_accuracy") for m in record["methods"]}
    trained = {m["name"]: mean_of(record, m["name"], "num_trainable") for m in record["methods"]}
    kept = {m["name"]: mean_of(record, m["name"], "kept_bytes") for m in record["methods"]}
    label = {m["name"]: m["label"].capitalize() for m in record["methods"]}
    lines = [
        f"{label[name]} reach {accuracy[name] / accuracy['full']:.1%} of full fine-tuning's mean accuracy "
        f"({accuracy[name]:.3f} of {accuracy['full']:.3f}) while training {trained[name] / trained['full']:.1%} of its "
        f"entries at a time, and keep {kept[name] / kept['full']:.1%} of its bytes."
        for name in ("static", "moving")
    ]
    lines.append(
        f"Head only reaches {accuracy['head'] / accuracy['full']:.1%} ({accuracy['head']:.3f}) "
        f"with {trained['head'] / trained['full']:.1%} of the entries."
    )
    better = sum(_wins(record, "moving", "static"))
    ties = len(record["tasks"]) - better - sum(_wins(record, "static", "moving"))
    lines.append(
        f"Moving the slices is better than leaving them in place on {better} of {len(record['tasks'])} tasks"
        f"{f', equal on {ties}' if ties else ''}; mean difference {accuracy['moving'] - accuracy['static']:+.3f}."
    )
    slim = record["slim"]["results"]
    left, plain = (mean(s[field] for s in slim) / accuracy["full"] for field in ("test_accuracy", "magnitude_accuracy"))
    size, whole = (mean(s[field] for s in slim) / 1e3 for field in ("num_bytes", "of_bytes"))
    lines.append(
        f"Slim: {record['slim']['keep']:.0%} of a full fine-tune's entries, fitted on {record['splits']['calibration']} "
        f"calibration images, keep {left:.1%} of its mean accuracy in {size:.0f} kB instead of {whole:.0f} kB; those of "
        f"largest magnitude alone keep {plain:.1%}."
    )
    intact = "bitwise as it was" if record["base"]["bitwise_intact"] else "NOT what it was: this is a fault"
    bank = record["bank"]
    good = bank["same_accuracy"] == bank["num_deltas"]
    again = "every one gives" if good else f"only {bank['same_accuracy']} of them give"
    lines.append(
        f"Back from a bank of {bank['num_deltas']} delta files on one base, {again} the accuracy it had. Base and "
        f"deltas take {bank['bytes'] / 1e6:.1f} MB, as many checkpoints would take {bank['checkpoint_bytes'] / 1e6:.1f} MB; "
        f"a swap takes {bank['median_swap_seconds'] * 1000:.1f} ms."
    )
    lines.append(f"After all {len(record['results'])} runs on one model, its base is {intact}.")
    return lines


def of_method(record: Record, method: str) -> list[dict[str, Any]]:
    """The results of one method, in the order of the tasks."""
    return [result for result in record["results"] if result["method"] == method]


def mean_of(record: Record, method: str, field: str) -> float:
    """The mean of one number over the tasks."""
    return mean(result[field] for result in of_method(record, method))


def _wins(record: Record, one: str, other: str) -> list[bool]:
    pairs = zip(of_method(record, one), of_method(record, other), strict=True)
    return [a["test_accuracy"] > b["test_accuracy"] for a, b in pairs]


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right, a rule under the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
