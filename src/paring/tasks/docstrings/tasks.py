"""Four questions about a docstring. The label of two of them is read from the code below it, not from its text.

How far words alone go: test accuracy of a logistic regression on tf-idf weighted single words, its strength chosen on
validation (Python 3.11.7, scikit-learn 1.9.1).

    task      labels   train   test   most frequent label   words
    module        12   1,600    640                 0.130   0.822
    kind           4   2,000    800                 0.298   0.693
    returns        2   2,000    800                 0.556   0.805
    raises         2   1,400    500                 0.532   0.698
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from paring.tasks.docstrings.collect import Docstring

NUM_PACKAGES = 12
Labelled = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """One question.

    Attributes:
        name: as on the command line.
        summary: one line for a reader.
        labelled: all docstrings -> (text, name of the label) of those that the question can be asked of.
        sizes: at most so many texts: train, calibration, validation, test.
    """

    name: str
    summary: str
    labelled: Callable[[Sequence[Docstring]], Labelled]
    sizes: tuple[int, int, int, int]


def normalised(text: str) -> str:
    """What makes two texts the same one: case and white space do not count."""
    return " ".join(text.lower().split())


def answers(task: Task, docstrings: Sequence[Docstring]) -> dict[str, tuple[str, str]]:
    """normalised text -> (text as first found, label). A text that stands for two labels is left out: it has no answer."""
    found: dict[str, tuple[str, str]] = {}
    unclear = set()
    for text, label in task.labelled(docstrings):
        key = normalised(text)
        if found.setdefault(key, (text, label))[1] != label:
            unclear.add(key)
    return {key: answer for key, answer in found.items() if key not in unclear}


def _module(docstrings: Sequence[Docstring]) -> Labelled:
    counts = Counter(docstring.package for docstring in docstrings)
    largest = sorted(counts, key=lambda package: (-counts[package], package))[:NUM_PACKAGES]
    return ((docstring.text, docstring.package) for docstring in docstrings if docstring.package in largest)


def _kind(docstrings: Sequence[Docstring]) -> Labelled:
    return ((docstring.text, docstring.kind) for docstring in docstrings)


def _returns(docstrings: Sequence[Docstring]) -> Labelled:
    for docstring in docstrings:
        code = docstring.code
        if code and not code.stub and code.outcome != "generator":  # about a hundred generators: too few to learn
            yield docstring.text, code.outcome


def _raises(docstrings: Sequence[Docstring]) -> Labelled:
    for docstring in docstrings:
        code = docstring.code
        if code and not code.stub:
            yield docstring.text, "raises" if code.raises else "never"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("module", "which of the 12 packages with most docstrings it is from", _module, (1600, 256, 400, 640)),
        Task("kind", "whether it is of a module, a class, a function or a method", _kind, (2000, 256, 400, 800)),
        Task("returns", "whether the code below it returns a value or nothing", _returns, (2000, 256, 400, 800)),
        Task("raises", "whether the code below it has a raise statement", _raises, (1400, 256, 300, 500)),
    )
}


def named_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"docstrings: got task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
