"""The numbers of ``paring slim`` as text. Nothing is said here that was not counted or scored."""

from collections.abc import Mapping, Sequence

from paring.recipes.scoring import Scores
from paring.recipes.slim.methods import Attempt
from paring.recipes.slim.problem import Problem
from paring.slim.pruners import num_kept

NOT_KNOWN = (
    "What the task loses by it is not known without data: --calibration FILE searches on rows of the task, and --test FILE "
    "measures what is lost"
)
_LEFT, _DRAWN = "no others differ from the base", "the others that were drawn do not differ from the base"
_WEIGHED = "the others weigh nothing, or do not differ from the base"
_WHY = {"magnitude": _LEFT, "rescaled": _LEFT, "dare": _DRAWN, "della": _DRAWN}  # where fewer are kept than asked for


def table(attempts: Sequence[Attempt], problem: Problem, chosen: Attempt, keep: float) -> list[str]:
    """A row for the fine-tune and one for each attempt; the chosen one is marked."""
    splits = [split for split in ("calibration", "validation") if split in problem.scorings]
    tuned = {split: problem.tuned[split] for split in splits}
    header = [f"keep {keep:g}", "bytes", "tries", "seconds", *(f"{s} {n}" for s in splits for n in tuned[s].as_dict())]
    rows = [["the fine-tune", "", "", "", *_numbers(tuned, splits)]]
    for a in attempts:
        tries = "" if a.result is None else f"{a.result.num_evaluations}"
        mark = " <-" if a is chosen and len(attempts) > 1 else ""
        rows.append([a.label + mark, f"{a.num_bytes:,}", tries, f"{a.seconds:.1f}", *_numbers(a.scores, splits)])
    return aligned([header, *rows])


def against(scores: Mapping[str, Scores], tuned: Mapping[str, Scores], split: str) -> str:
    """A score beside the fine-tune's."""
    (name, value), (_, whole) = scores[split].metric, tuned[split].metric
    share = f" ({100 * value / whole:.1f} % of it)" if name == "accuracy" and whole else ""
    return f"{split.capitalize()} {name} {value:.4f}, the fine-tune's {whole:.4f}{share}"


def kept_line(attempt: Attempt, keep: float, num_entries: int, energy: float) -> str:
    """How many entries stay, and what they carry."""
    wanted = num_kept(keep, num_entries)
    fewer = f", of {wanted:,} asked for: {_WHY.get(attempt.label, _WEIGHED)}" if attempt.num_kept < wanted else ""
    return (
        f"Kept {attempt.num_kept:,} of {num_entries:,} entries ({attempt.label}){fewer}; in the fine-tune they carry "
        f"{100 * energy:.1f} % of the difference's squared norm; base + delta is no longer bitwise the fine-tune"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right, a rule under the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _numbers(scores: Mapping[str, Scores], splits: Sequence[str]) -> list[str]:
    return [f"{value:.4f}" if value is not None else "NaN" for split in splits for value in scores[split].as_dict().values()]
