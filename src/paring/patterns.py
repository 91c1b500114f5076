"""Globs and regular expressions on dotted names."""

import re


def expression(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a component, ``**`` does not, leading components may be left out; ``re:…`` is taken as it is.

    Raises:
        re.error: what follows ``re:`` is no regular expression.
    """
    if pattern.startswith("re:"):
        return re.compile(pattern[3:])
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile(r"(?:.*\.)?" + "".join(special.get(p, re.escape(p)) for p in parts))
