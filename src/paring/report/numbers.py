"""Numbers as a reader finds them on the page, and as a program finds them in a CSV file."""

import math

from paring.report.document import Cell, Form

_GAP = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line
NOT_THERE, NOT_FINITE = "\N{EN DASH}", "not finite"


def text(value: Cell, form: Form = "general") -> str:
    """For the page; a value that is not there is a dash."""
    if value is None:
        return NOT_THERE
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return NOT_FINITE
    if form == "count":
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.1f}"
    if form == "score":
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
    if form == "share":
        digits = ".1f" if value == 0 or 0.00995 <= abs(value) < 1e6 else ".2g" if abs(value) < 1 else ".3g"
        return f"{100 * value:{digits}}{_GAP}%"
    if form in ("seconds", "ratio"):
        return f"{value:,.1f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}"


def raw(value: Cell) -> str:
    """For a program: every digit; NaN and inf by these names; nothing for a value that is not there."""
    return "" if value is None else value if isinstance(value, str) else repr(value)


def size(num_bytes: float | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point: 1.35 MB."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return text(num_bytes)
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(num_bytes) >= unit:
            return (
                f"{num_bytes / unit:,.3g}{_GAP}{name}"
                if abs(num_bytes) < 1e3 * unit
                else f"{num_bytes / unit:,.0f}{_GAP}{name}"
            )
    return f"{num_bytes:.0f}{_GAP}bytes"


def duration(seconds: float | None) -> str:
    """52 s, 3 min 12 s, 1 h 4 min."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0 or seconds > 1e9:
        return text(seconds)
    if seconds < 10:
        return f"{seconds:.1f}{_GAP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_GAP}s"
    if whole < 3600:
        return f"{whole // 60}{_GAP}min {whole % 60}{_GAP}s"
    return f"{whole // 3600}{_GAP}h {whole % 3600 // 60}{_GAP}min"


def ratio(part: float | None, whole: float | None) -> float | None:
    """``part / whole``; None where it means nothing."""
    if part is None or whole is None or not math.isfinite(part) or not math.isfinite(whole) or whole == 0:
        return None
    return part / whole
