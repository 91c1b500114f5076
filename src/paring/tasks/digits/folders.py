"""The digits as an image folder, ``train/7/012.png``, as image classifiers are commonly fed."""

import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from paring.files import write_bytes
from paring.tasks.digits.data import SPLIT_SIZES, Split, load_splits
from paring.tasks.digits.shifts import Shift
from paring.tasks.extras import require

_WRITTEN: tuple[Split, ...] = ("train", "validation", "test")


def write_image_folder(shift: Shift | None, folder: str | Path, splits: Sequence[Split] = _WRITTEN) -> Path:
    """Writes the digits as 8 x 8 grey PNG files, ``SPLIT/LABEL/NUMBER.png``; the number is the place in the split.

    Grey runs from 0, the digits' -1, to 255, their 1: ``2 * grey / 255 - 1`` is within 1/255 of the value.
    The calibration split is not written unless asked for: it is for choosing among tuned models, not for tuning one.

    Args:
        shift: the task that is shown; None: the digits as they are.
        folder: new or empty: images left from another task would be taken for this one's.
        splits: those that are written, of train, calibration, validation and test.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something, or there is no such split.
        ImportError: Pillow or scikit-learn is missing.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"image folder: {folder} is not empty; expected a new or empty folder: name another or empty it")
    unknown = [split for split in splits if split not in SPLIT_SIZES]
    if unknown or not splits:
        raise ValueError(f"splits: got {unknown[0] if unknown else splits!r}; expected some of {', '.join(SPLIT_SIZES)}")
    for split in splits:
        examples = load_splits()[split]
        if shift is not None:
            examples = shift(examples)
        for number, (image, label) in enumerate(zip(examples.images, examples.labels.tolist(), strict=True)):
            write_bytes(folder / split / str(label) / f"{number:03}.png", _png(image[0]))
    return folder


def _png(image: Tensor) -> bytes:
    """``[8, 8]``, -1 to 1, as a file's bytes."""
    grey = ((image + 1) * 127.5).round().byte().numpy()
    content = io.BytesIO()
    require("PIL.Image", "the image folder").fromarray(grey).save(content, format="PNG")
    return content.getvalue()
