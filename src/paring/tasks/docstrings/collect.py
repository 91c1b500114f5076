"""The docstrings of the installed Python standard library, read from its source files; nothing of it is imported.

Every module, class, function and method that has a docstring, in the order of the files' names and, in a file, of the
lines. Left out: what is no part of the library (``site-packages``), its tests, and IDLE and the turtle demos, which are
programs rather than a library and which some systems do not install. The text is the docstring without its
indentation; nothing else is taken away, so that names, signatures and doctests stay.

What is found depends on the Python installed: the same for the same version with the same parts (a Linux distribution
may leave out tkinter, say).
"""

import ast
import gc
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["module", "class", "function", "method"]
Outcome = Literal["value", "generator", "nothing"]
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "__pycache__"}
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Code:
    """What the statements of a function or method do; functions and classes defined inside are not looked into.

    Attributes:
        outcome: it yields; or returns something other than None somewhere; or neither.
        raises: it has a ``raise`` statement.
        stub: nothing but ``pass``, ``...`` or ``raise NotImplementedError``: there is no code to say anything of.
    """

    outcome: Outcome
    raises: bool
    stub: bool


@dataclass(frozen=True)
class Docstring:
    """One docstring.

    Attributes:
        text: as ``inspect.getdoc`` gives it; not empty.
        where: dotted name, ``json.decoder.JSONDecoder.decode``.
        package: the first part of it, ``json``.
        kind: what it is written for; a function defined in a function is a function.
        code: of a function or method; else None.
    """

    text: str
    where: str
    package: str
    kind: Kind
    code: Code | None


@cache
def standard_library() -> tuple[Docstring, ...]:
    """All docstrings of the library of this interpreter; read once, in about two seconds.

    Raises:
        FileNotFoundError: the interpreter comes without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = tuple(docstrings_in(root))
    if not found:
        raise FileNotFoundError(
            f"docstrings: no Python sources in {root}; expected the standard library's. This Python comes without them "
            "(frozen or compiled only): use one from python.org, conda, pyenv or your system"
        )
    return found


def docstrings_in(root: Path) -> Iterator[Docstring]:
    """The docstrings below a folder of packages and modules, in a fixed order.

    Raises:
        SyntaxError: a file is not Python of this interpreter's version.
    """
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    for path in paths:
        if SKIPPED_FOLDERS.isdisjoint(path.parts[:-1]):
            with warnings.catch_warnings(), _without_collection():
                warnings.simplefilter("ignore")  # of an escape sequence in a string of the library
                tree = ast.parse((root / path).read_bytes(), filename=str(root / path))
                parts = path.with_suffix("").parts
                found = list(_of(tree, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), "module"))
            yield from found


def _of(node: ast.Module | ast.ClassDef | _Function, where: str, kind: Kind) -> Iterator[Docstring]:
    """A definition's docstring, then those of what is defined in it."""
    text = ast.get_docstring(node)
    if text:
        code = None if isinstance(node, ast.Module | ast.ClassDef) else code_of(node)
        yield Docstring(text, where, where.partition(".")[0], kind, code)
    for inner in _defined_in(node):
        if isinstance(inner, ast.ClassDef):
            yield from _of(inner, f"{where}.{inner.name}", "class")
        else:
            yield from _of(inner, f"{where}.{inner.name}", "method" if isinstance(node, ast.ClassDef) else "function")


def _defined_in(node: ast.AST) -> Iterator[ast.ClassDef | _Function]:
    """The definitions directly in a scope, those under its ``if`` and ``try`` included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.expr):
            yield from _defined_in(child)


def code_of(function: _Function) -> Code:
    """What the statements of a function do."""
    outcome: Outcome = "nothing"
    raises = False
    for node in _own_nodes(function):
        raises |= isinstance(node, ast.Raise)
        if isinstance(node, ast.Yield | ast.YieldFrom):
            outcome = "generator"
        elif isinstance(node, ast.Return) and outcome == "nothing" and not _is_none(node.value):
            outcome = "value"
    return Code(outcome, raises, all(_is_empty(statement) for statement in function.body))


def _own_nodes(function: _Function) -> Iterator[ast.AST]:
    """What lies in a function's body, in no particular order, without what belongs to a scope inside it."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _SCOPES):
            waiting.extend(ast.iter_child_nodes(node))


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _is_empty(statement: ast.stmt) -> bool:
    """A docstring, ``...``, ``pass`` or ``raise NotImplementedError``."""
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection: looking through a new syntax tree again and again takes as long as making it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
