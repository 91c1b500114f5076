"""Names of the same tensors in two places, one of which may have a prefix: ``encoder.layer…`` and ``bert.encoder.layer…``.

A pretrained body is often stored without the name it has inside a model with a head.
"""

from collections.abc import Collection, Iterable, Mapping

from paring.delta.names import split_part


def align(wanted: Iterable[str], there: Collection[str]) -> dict[str, str]:
    """For each wanted name the one it has ``there``, as it is or with one leading component more or less.

    One rule holds for all names: they are there as they are; or with a prefix put before each; or with the prefix that
    all have taken away. Of several, the first under which most names are there. What is not there is left out.
    """
    names, present = list(wanted), set(there)
    best = {n: n for n in names if n in present}
    if len(best) == len(names):
        return best
    for prefix in sorted({n.split(".", 1)[0] + "." for n in present if "." in n}):
        longer = {n: prefix + n for n in names if prefix + n in present}
        best = longer if len(longer) > len(best) else best
    prefixed: dict[str, dict[str, str]] = {}
    for n in names:  # in one pass: a file may have as many prefixes as names
        prefix, dot, rest = n.partition(".")
        if dot and rest in present:
            prefixed.setdefault(prefix + dot, {})[n] = rest
    for prefix in sorted(prefixed):
        best = prefixed[prefix] if len(prefixed[prefix]) > len(best) else best
    return best


def located(name: str, found: Mapping[str, str]) -> str:
    """The name ``there`` of a tensor or of a part of one, by the names of whole tensors that were found; else its own."""
    whole, index = split_part(name)
    return found.get(name) or (f"{found[whole]}[{index}]" if whole in found and index >= 0 else name)
