"""What a run leaves in a checkpoint folder: the session's state, not the model.

``slices.pt`` holds the values of every entry touched so far, where they lie, a hash of what stood there before, and fp32
working copies where the weights are half precision. It goes onto the same pretrained model, and onto no other.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paring.delta.blocks import Rect, matrix_shape, read, same_bits, write
from paring.files import replacing
from paring.trainer.plateau import Plateau
from paring.tune.session import SliceSession

FILE = "slices.pt"


def save_slices(folder: str | Path, session: SliceSession, plateau: Plateau | None, *, originals: bool = False) -> None:
    """Writes ``slices.pt`` into ``folder``, whole or not at all.

    Args:
        originals: keep beside the new values what stood there before; needed where whoever resumes has already loaded the
            tuned weights into the model (a plain Trainer does).
    """
    state: dict[str, Any] = {"session": session.state_dict(), "plateau": plateau.state_dict() if plateau else None}
    if originals:
        log = session._log()
        state["originals"] = {name: [values for _, values in log.originals(name)] for name in log}
    with replacing(Path(folder) / FILE) as temporary:
        torch.save(state, temporary)


def load_slices(folder: str | Path, session: SliceSession, plateau: Plateau | None) -> None:
    """Continues an open, fresh session from ``folder``.

    Raises:
        FileNotFoundError: the folder holds no ``slices.pt``; says what it does hold. ValueError: the file is damaged, or
            of another model or configuration (says what differs); the session is as it was then.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in Path(folder).iterdir())) if Path(folder).is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{folder} is no checkpoint of a sliced run: {FILE} is missing (there is: {there or 'nothing'})"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        touched, parts = state["session"]["touched"], (state["session"], state["plateau"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint of paring's: {str(error).splitlines()[0]}") from None
    _put_back(session, touched, state.get("originals", {}))
    session.load_state_dict(parts[0])
    if plateau is not None and parts[1] is not None:
        plateau.load_state_dict(parts[1])


def _put_back(session: SliceSession, touched: dict[str, Any], originals: dict[str, list[Tensor]]) -> None:
    """The base again, where the model holds the tuned weights of this very checkpoint already."""
    tensors = session._tensors()
    for name, before in originals.items():
        extents = touched[name]["rows"].numel(), touched[name]["columns"].numel()
        if name not in tensors or matrix_shape(tensors[name].shape or torch.Size((1,))) != extents:
            continue  # another model: load_state_dict says so
        rects = [Rect(*row) for row in touched[name]["rects"].tolist()]
        now = torch.cat([read(tensors[name], rect).flatten() for rect in rects]).cpu()
        if same_bits(now, touched[name]["values"]):
            for rect, values in zip(rects, before, strict=True):
                write(tensors[name], rect, values)
