"""Which split lies where: a file, a folder of files, a folder of images, a saved dataset."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from paring.recipes.readers import NEEDED_FOR, READERS, Table, joined, of_dataset
from paring.tasks.extras import require

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_EXPECTED = (
    f"expected a file ({', '.join(READERS)}), a folder of such files named train, validation and test, a folder with one "
    "folder of images a class, or a dataset as save_to_disk writes it"
)


def read(path: Path) -> tuple[dict[str, Table], list[str]]:
    """The splits that ``path`` holds, by their names here (train is always there), and sentences for the user.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it holds nothing that can be read, or two files for one split, or no train split.
    """
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else f"looked from {Path.cwd()}; {_EXPECTED}"
        raise FileNotFoundError(f"data: there is no file or folder {path}; {hint}")
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"data: {path} is of an unknown type ({path.suffix or 'no ending'}); {_EXPECTED}")
        return {"train": READERS[path.suffix.lower()](path)}, []
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _saved(path)
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    files = [p for p in inside if p.is_file() and p.suffix.lower() in READERS]
    if files:
        return _files(path, files)
    folders = [p for p in inside if p.is_dir()]
    if any(_images_in(p)[0] for p in folders):
        return _image_folders(path, folders)
    raise ValueError(f"data: {path} holds nothing to read; {_EXPECTED}")


def _saved(path: Path) -> tuple[dict[str, Table], list[str]]:
    datasets = require("datasets", NEEDED_FOR)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in whatever way the library happens to meet it
        raise ValueError(f"data: the dataset saved in {path} could not be read: {type(error).__name__}: {error}") from error
    if isinstance(saved, datasets.Dataset):
        return {"train": of_dataset(saved, str(path))}, []
    names, notes = _named(path, saved)
    return {split: of_dataset(saved[name], f"{path}, split {name}") for split, (name,) in names.items()}, notes


def _files(path: Path, files: list[Path]) -> tuple[dict[str, Table], list[str]]:
    if len(files) == 1:
        return {"train": READERS[files[0].suffix.lower()](files[0])}, []
    by_name: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        name = f"{shard[1]}-*{file.suffix}" if shard else file.name
        by_name.setdefault(name, []).append(file)
    names, notes = _named(path, by_name)
    splits = {}
    for split, (name,) in names.items():
        splits[split] = joined([READERS[file.suffix.lower()](file) for file in by_name[name]])
    return splits, notes


def _image_folders(path: Path, folders: list[Path]) -> tuple[dict[str, Table], list[str]]:
    if not any(folder.name.lower() in _SPLIT_OF for folder in folders):
        return _all_images({"train": path})
    names, notes = _named(path, [folder.name for folder in folders])
    tables, more = _all_images({split: path / name for split, (name,) in names.items()})
    return tables, notes + more


def _all_images(folders: dict[str, Path]) -> tuple[dict[str, Table], list[str]]:
    tables, others = {}, 0
    for split, folder in folders.items():
        tables[split], others_here = _image_table(folder)
        others += others_here
    return tables, [f"{others} file(s) beside the images were left alone"] if others else []


def _image_table(folder: Path) -> tuple[Table, int]:
    """A folder's images with the names of their folders, and how many other files there are."""
    datasets = require("datasets", NEEDED_FOR)
    loose, others = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _IMAGES], 0
    if loose:
        raise ValueError(f"data: {loose[0]} lies in no class; expected every image in a folder named after its label")
    files, labels = [], []
    for class_folder in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        images, others_here = _images_in(class_folder)
        files += images
        labels += [class_folder.name] * len(images)
        others += others_here
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": [str(f.resolve()) for f in files], "label": labels}, features=features)
    return Table(
        ("image", "label"), lambda name: list(dataset[name]), lambda row: str(files[row]), len(files), {}, dataset
    ), others


def _images_in(folder: Path) -> tuple[list[Path], int]:
    """The images anywhere below a folder, in order; and how many other files there are, hidden ones not counted."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    images = [p for p in files if p.suffix.lower() in _IMAGES]
    return images, len(files) - len(images)


def _named(path: Path, names: Iterable[Any]) -> tuple[dict[str, tuple[str]], list[str]]:
    """split -> the one name that stands for it; and a sentence about the names that stand for none."""
    found: dict[str, list[str]] = {}
    unknown = []
    for name in names:
        split = _SPLIT_OF.get(name.partition(".")[0].removesuffix("-*").lower())
        if split is None:
            unknown.append(name)
        else:
            found.setdefault(split, []).append(name)
    for split, several in found.items():
        if len(several) > 1:
            raise ValueError(f"data: {path} holds {len(several)} {split} splits ({', '.join(several)}); expected one")
    if "train" not in found:
        there = [name for several in found.values() for name in several] + unknown
        raise ValueError(f"data: {path} holds {', '.join(there)}, but no train split; expected one named train")
    notes = [f"left alone: {', '.join(unknown)} in {path} (not named as a split)"] if unknown else []
    return {split: (several[0],) for split, several in found.items()}, notes
