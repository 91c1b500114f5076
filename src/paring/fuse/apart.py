"""That an output lies apart from what it is made from: overwriting it must not remove an input, nor writing change one."""

from collections.abc import Iterable
from pathlib import Path

from paring.fuse.config import Reference
from paring.fuse.models import Model


def refuse_onto_input(out: Path, models: Iterable[tuple[Reference, Model]]) -> None:
    """That ``out`` is no input, holds none and lies in none, links followed.

    Raises:
        FileExistsError: it does; the model is named.
    """
    named, out = out, out.resolve()
    for reference, model in models:
        for path in (Path(row[0]) for row in model.before):
            # A file of the hub's cache is a link: neither it nor what it leads to may go.
            if any(there.is_relative_to(out) for there in (path.parent.resolve() / path.name, path.resolve())):
                raise FileExistsError(
                    f"{named} holds {path}, which {reference} is read from; expected an output apart from its inputs: take "
                    "another name"
                )
        for folder in (Path(where).expanduser() for where in (reference.model, reference.adapter) if where):
            if folder.is_dir() and out.is_relative_to(folder.resolve()):
                raise FileExistsError(
                    f"{named} lies in {folder}, which is read; expected an output apart from its inputs: take another name"
                )
