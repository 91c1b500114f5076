"""HTML out of parts: text is escaped unless it was made here, so that nobody has to remember to.

``element("td", {"class": "name"}, text)`` gives ``Markup``. A plain string among the children is text from somewhere (a file
name, a label, an error) and is escaped; ``Markup`` is taken as it is. Attributes are always escaped.
"""

import html
import re
from collections.abc import Mapping

_VOID = ("meta", "input", "br", "link", "rect", "line", "path", "circle")  # they have no content here
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9:-]*")
# Control characters, halves of surrogate pairs, and marks that turn the direction of what follows: none is for a reader.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")

Value = str | int | float | bool | None
Child = str | None


class Markup(str):
    """HTML made of escaped parts."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, Value] | None = None, *children: Child) -> Markup:
    """One element.

    Args:
        attributes: False and None leave one out, True gives it without a value.
        children: ``Markup``, or text to be escaped; None is left out.
    """
    assert _NAME.fullmatch(name), name
    parts = [f"<{name}"]
    for key, value in (attributes or {}).items():
        assert _NAME.fullmatch(key) and not key.startswith("on"), key  # no handlers in the page
        if value is True:
            parts.append(f" {key}")
        elif value is not None and value is not False:
            parts.append(f' {key}="{escaped(str(value))}"')
    if name in _VOID:
        assert not children
        return Markup("".join([*parts, "/>"]))
    return Markup("".join([*parts, ">", *(_child(c) for c in children if c is not None), f"</{name}>"]))


def joined(*parts: Child) -> Markup:
    """Parts one after the other."""
    return Markup("".join(_child(part) for part in parts if part is not None))


def escaped(text: str) -> str:
    """Text for the content of an element or a quoted attribute."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True)


def _child(child: str) -> str:
    return child if isinstance(child, Markup) else escaped(child)
