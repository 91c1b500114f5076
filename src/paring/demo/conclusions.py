"""What the demo's numbers show, as sentences. Everything said here is computed from the record."""

from statistics import mean

from paring.demo.table import Record, mean_of, of_method


def conclusions(record: Record) -> list[str]:
    """In the order of the demo."""
    fused = [_fused(record)] if record["fused"] else []
    return [*_tuned(record), _slim(record), *fused, _kept(record), _transferred(record), _banked(record), _intact(record)]


def _tuned(record: Record) -> list[str]:
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
    return lines


def _slim(record: Record) -> str:
    slim, full = record["slim"]["results"], mean_of(record, "full", "test_accuracy")
    left, plain = (mean(s[field] for s in slim) / full for field in ("test_accuracy", "magnitude_accuracy"))
    size, whole = (mean(s[field] for s in slim) / 1e3 for field in ("num_bytes", "of_bytes"))
    return (
        f"Slim: {record['slim']['keep']:.0%} of a full fine-tune's entries, fitted on {record['splits']['calibration']} "
        f"calibration images, keep {left:.1%} of its mean accuracy in {size:.0f} kB instead of {whole:.0f} kB; those of "
        f"largest magnitude alone keep {plain:.1%}."
    )


def _fused(record: Record) -> str:
    found, full = record["fused"], of_method(record, "full")
    own = {result["task"]: result["test_accuracy"] for result in full}
    results, reached = found["results"], mean(own.values())
    fitted, average, ties = (mean(r[key] for r in results) / reached for key in ("fitted", "average", "ties"))
    worst = min(results, key=lambda r: r["fitted"] / own[r["task"]])
    how = f"fitted in {found['steps']} steps on the calibration images without their labels"
    if not found["rate"]:
        how = f"the weight average, which {found['steps']} steps on the calibration images brought no nearer to the fine-tunes"
    return (
        f"Fuse: the {len(results)} full fine-tunes in one model, each with its own head, {how}, keep {fitted:.1%} of their "
        f"mean accuracy (worst {worst['task']}, {worst['fitted'] / own[worst['task']]:.1%}); merged without data {average:.1%} "
        f"(weight average) and {ties:.1%} (TIES)."
    )


def _kept(record: Record) -> str:
    count = len(record["tasks"])
    first, *others = record["kept"]
    said = [f"{line['bytes'] / 1e6:.2f} MB as {line['name']} ({line['mean_test_accuracy']:.3f})" for line in others]
    return (
        f"What {count} task{'s take' if count > 1 else ' takes'}, and the mean accuracy: {first['bytes'] / 1e6:.2f} MB as "
        f"{first['name']} ({first['mean_test_accuracy']:.3f}); {'; '.join(said)}."
    )


def _transferred(record: Record) -> str:
    found = record["transfer"]
    best = next(m for m in found["methods"] if m["method"] == found["chosen"]["method"])["test"]
    ends = {name: found["ends"][name]["test"]["h"] for name in ("base", "tuned")}
    others = [f"{m['method']} {m['test']['h']:.3f}" for m in found["methods"] if m["method"] != found["chosen"]["method"]]
    return (
        f"Transfer: on the way from the base to {found['task']}, {found['chosen']['method']} at lambda {best['lambda']:.1f} is "
        f"the best for both: H-score {best['h']:.3f} ({found['task']} {best['tuned']:.3f}, upright {best['original']:.3f}), "
        f"where the base has {ends['base']:.3f} and the fine-tune {ends['tuned']:.3f}; {', '.join(others)} "
        f"(pruned to {found['keep']:.0%} where not whole)."
    )


def _banked(record: Record) -> str:
    bank = record["bank"]
    good = bank["same_accuracy"] == bank["num_deltas"]
    again = "every one gives" if good else f"only {bank['same_accuracy']} of them give"
    return (
        f"Back from a bank of {bank['num_deltas']} delta files on one base, {again} the accuracy it had. Base and "
        f"deltas take {bank['bytes'] / 1e6:.1f} MB, as many checkpoints would take {bank['checkpoint_bytes'] / 1e6:.1f} MB; "
        f"a swap takes {bank['median_swap_seconds'] * 1000:.1f} ms."
    )


def _intact(record: Record) -> str:
    intact = "bitwise as it was" if record["base"]["bitwise_intact"] else "NOT what it was: this is a fault"
    return f"After all {len(record['results'])} runs on one model, its base is {intact}."


def _wins(record: Record, one: str, other: str) -> list[bool]:
    pairs = zip(of_method(record, one), of_method(record, other), strict=True)
    return [a["test_accuracy"] > b["test_accuracy"] for a, b in pairs]
