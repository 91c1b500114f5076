"""What ``paring tune`` reads: files, folders, images, saved datasets; columns, labels, held-out rows, and the errors."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from paring.recipes.columns import in_order
from paring.recipes.data import Data, load_examples
from paring.recipes.holdout import hold_out, num_shared, text_key
from paring.tasks.digits import load_splits as digit_splits
from paring.tasks.digits.folders import write_image_folder
from paring.tasks.docstrings import label_names, load_splits, write_csv

TEXT, IMAGE, LM = "text-classification", "image-classification", "causal-lm"
ROWS = [(f"text {i}", "ab"[i % 2]) for i in range(20)]


def rows(data: Data, split: str = "train") -> list[tuple[str, str]]:
    part = getattr(data, split)
    return [(text, data.labels[label]) for text, label in zip(part["text"], part["label"], strict=True)]


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def csv_of(pairs: list[tuple[str, str]], header: str = "text,label") -> str:
    return "\n".join([header, *(f"{text},{label}" for text, label in pairs)]) + "\n"


def jsonl_of(pairs: list[tuple[Any, Any]]) -> str:
    return "\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs)


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


def refused(path: Path, message: str, task: Any = TEXT, error: type[Exception] = ValueError, **options: Any) -> None:
    """The message is given as it is printed; ``...`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in message.replace("PATH", str(path)).split("..."))
    with pytest.raises(error) as caught:
        load_examples(path, task, **options)
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


# Files.


def _parquet(path: Path) -> Path:
    datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [y for _, y in ROWS]}).to_parquet(path)
    return path


FILES: dict[str, Callable[[Path], Path]] = {
    "csv": lambda folder: write(folder / "rows.csv", csv_of(ROWS)),
    "csv with a mark": lambda folder: write(folder / "rows.CSV", "\ufeff" + csv_of(ROWS).replace("\n", "\r\n")),
    "tsv": lambda folder: write(folder / "rows.tsv", csv_of(ROWS).replace(",", "\t")),
    "jsonl": lambda folder: write(folder / "rows.jsonl", jsonl_of(ROWS)),
    "ndjson": lambda folder: write(folder / "rows.ndjson", "\n" + jsonl_of(ROWS).replace("\n", "\r\n\r\n")),
    "json": lambda folder: write(folder / "rows.json", "\n[" + jsonl_of(ROWS).replace("\n", ",\n") + "]"),
    "parquet": lambda folder: _parquet(folder / "rows.parquet"),
    "a file in a folder": lambda folder: write(folder / "x" / "rows.csv", csv_of(ROWS)).parent,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_each_type(kind: str, tmp_path: Path) -> None:
    data = load_examples(FILES[kind](tmp_path), TEXT, validation=0.2)
    assert isinstance(data.train, datasets.Dataset) and data.train.column_names == ["text", "label"]
    assert sorted(rows(data) + rows(data, "validation")) == sorted(ROWS)
    assert (len(data.validation), data.test, data.labels) == (4, None, ("a", "b"))
    assert data.notes == ("no validation split: 4 of 20 train rows held out (seed 0)",)
    assert set(rows(data)) | set(rows(data, "validation")) == set(ROWS)
    assert isinstance(data.train[0]["label"], int)


def test_texts_arrive_as_they_are_written(tmp_path: Path) -> None:
    texts = ["NA", "null", "1.0", 'a "quoted", text', "two\nlines\r\nor three", " spaces ", "\u2028 é", "x" * 200_000]
    limit = csv.field_size_limit(1_000)  # of the process: to be left as it is found
    quoted = "".join('"' + text.replace('"', '""') + '",None\n' for text in texts)
    path = write(tmp_path / "train.csv", f"text,label\n{quoted}z,b")
    write(tmp_path / "dev.csv", csv_of([("y", "b")]))
    assert rows(load_examples(tmp_path, TEXT)) == [*((t, "None") for t in texts), ("z", "b")]
    assert csv.field_size_limit(limit) == 1_000
    path.unlink()
    write(
        tmp_path / "train.jsonl",
        "".join(json.dumps({"text": t, "label": i % 2}, ensure_ascii=False) + "\n" for i, t in enumerate(texts)),
    )
    write(tmp_path / "dev.csv", csv_of([("y", "1")]))
    assert [t for t, _ in rows(load_examples(tmp_path, TEXT))] == texts


def test_a_folder_with_three_splits_and_notes(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl", "test.tsv", "calibration.csv", ".hidden.csv", "README.md"):
        content = jsonl_of(ROWS[:4]) if "json" in name else csv_of(ROWS[:6] if "test" in name else ROWS[4:])
        write(tmp_path / name, content.replace(",", "\t") if "tsv" in name else content)
    data = load_examples(tmp_path, TEXT)
    assert rows(data) == ROWS[4:] and rows(data, "validation") == ROWS[:4] and rows(data, "test") == ROWS[:6]
    assert data.notes == (
        f"left alone: calibration.csv in {tmp_path} (not named as a split)",
        "2 of 6 test rows stand in train too: the test score is flattered",
        "4 of 6 test rows stand in validation too: the test score is flattered",
    )


def test_shards_are_one_split(tmp_path: Path) -> None:
    for i in range(2):
        part = datasets.Dataset.from_dict({"text": [t for t, _ in ROWS[i::2]], "label": [i] * 10, f"more{i}": [0] * 10})
        part.to_parquet(tmp_path / f"train-0000{i}-of-00002.parquet")
    write(tmp_path / "valid.jsonl", jsonl_of([("new", 1)]))
    data = load_examples(tmp_path, TEXT)
    assert data.labels == ("0", "1")
    assert rows(data) == [(t, "01"["ab".index(y)]) for i in range(2) for t, y in ROWS[i::2]]
    refused(tmp_path, "the train split of PATH has no column 'more0'; it has text, label", label_column="more0")
    second = datasets.Dataset.from_dict({"text": ["x", None], "label": [1, 1]})
    second.to_parquet(tmp_path / "train-00001-of-00002.parquet")
    refused(tmp_path, "data: PATH/train-00001-of-00002.parquet, row 2: 'text' is missing")


@pytest.mark.parametrize("several", [False, True])
def test_a_saved_dataset(several: bool, tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "b", "a", "x"])}
    )
    saved = datasets.Dataset.from_dict({"sentence": [t for t, _ in ROWS], "label": ["z", "a"] * 10}, features=features)
    parts = datasets.DatasetDict({"train": saved, "validation": saved.select(range(3)), "unsupervised": saved})
    (parts if several else saved).save_to_disk(tmp_path / "saved")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    data = load_examples(tmp_path / "saved", TEXT)
    assert data.labels == ("z", "b", "a", "x")  # as the dataset counts them, those that are not there included
    assert set(rows(data, "validation")) < {(t, "za"["ab".index(y)]) for t, y in ROWS}
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    if several:
        assert data.notes == (
            f"left alone: unsupervised in {tmp_path / 'saved'} (not named as a split)",
            "3 of 3 validation rows stand in train too: the validation score is flattered",
        )


def test_rows_saved_out_of_order_keep_their_labels(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [i % 2 for i in range(20)]}).shuffle(seed=1)
    saved.with_format("numpy").save_to_disk(tmp_path)
    data = load_examples(tmp_path, TEXT)
    assert data.labels == ("0", "1")
    assert set(rows(data)) < {(t, "01"["ab".index(y)]) for t, y in ROWS}


def test_the_name_of_a_folder_is_no_column(tmp_path: Path) -> None:
    (tmp_path / "label=9").mkdir()
    assert load_examples(_parquet(tmp_path / "label=9" / "rows.parquet"), TEXT).labels == ("a", "b")


def test_the_docstring_tasks_are_read_back(tmp_path: Path) -> None:
    write_csv("returns", tmp_path)
    data = load_examples(tmp_path, TEXT)
    assert (data.labels, data.notes) == (label_names("returns"), ())
    for split in ("train", "validation", "test"):
        texts = load_splits("returns")[split]  # type: ignore[index]
        assert list(getattr(data, split)["text"]) == list(texts.texts)
        assert list(getattr(data, split)["label"]) == texts.labels.tolist()


# Causal language models.


def test_causal_lm_reads_texts_alone_and_leaves_empty_ones_out(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", jsonl_of([(t, None) for t, _ in ROWS] + [("", None), (" \n", None)]))
    data = load_examples(path, LM)
    assert data.train.column_names == ["text"] and data.labels == ()
    assert sorted([*data.train["text"], *data.validation["text"]]) == sorted(t for t, _ in ROWS)
    assert data.notes[0] == f"2 of 22 texts of {path} are empty and were left out"
    refused(path, "label_column is 'label'; causal-lm has no labels: leave --label-column out", LM, label_column="label")
    refused(write(tmp_path / "e.jsonl", jsonl_of([(" ", None)])), "PATH has only empty texts", LM)


# Images.


def test_an_image_folder_with_splits(tmp_path: Path) -> None:
    folder = write_image_folder(None, tmp_path / "digits")
    write(folder / "train" / "7" / "notes.txt", "")
    write(folder / "train" / "7" / ".DS_Store", "")
    data = load_examples(folder, IMAGE)
    assert data.labels == tuple("0123456789")
    assert data.notes[0] == "1 file(s) beside the images were left alone"
    for split in ("train", "validation", "test"):
        part = getattr(data, split)
        assert part.column_names == ["image", "label"]
        expected = digit_splits()[split].labels.bincount().tolist()  # type: ignore[index]
        assert [Counter(part["label"])[i] for i in range(10)] == expected
    first = data.train[0]
    assert first["image"].size == (8, 8) and first["label"] == 0


def test_an_image_folder_without_splits(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / ("cat" if i % 2 else "ant") / "deeper" / f"{i}.png", 10 * (i // 4))  # pairs of the same
    data = load_examples(tmp_path, IMAGE, validation=0.2)
    assert data.labels == ("ant", "cat")
    seen = {split: {row["image"].getpixel((0, 0)) for row in getattr(data, split)} for split in ("train", "validation")}
    assert not seen["train"] & seen["validation"] and len(data.train) + len(data.validation) == 20


@pytest.mark.parametrize("parquet", [False, True])
def test_saved_images(parquet: bool, tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "raw" / f"{i}.png", 40 * i)
    images = [{"bytes": (tmp_path / "raw" / f"{i}.png").read_bytes(), "path": None} for i in range(6)]
    saved = datasets.Dataset.from_dict({"picture": images, "kind": [10, 9] * 3}).cast_column("picture", datasets.Image())
    path = tmp_path / "saved"
    if parquet:
        path = tmp_path / "saved.parquet"
        saved.to_parquet(path)
    else:
        saved.save_to_disk(path)
    data = load_examples(path, IMAGE, label_column="kind", validation=0.3)
    assert data.labels == ("9", "10")
    pairs = [(r["image"].getpixel((0, 0)), data.labels[r["label"]]) for part in (data.train, data.validation) for r in part]
    assert sorted(pairs) == [(40 * i, "9" if i % 2 else "10") for i in range(6)]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    Image.effect_noise((64, 64), 50).save(tmp_path / "a" / "0.png")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[: len(whole) // 2])  # what a broken download leaves: the head is sound
    refused(tmp_path, f"data: {tmp_path}/a/0.png could not be read as an image (...); replace or remove it", IMAGE)
    (tmp_path / "a" / "0.png").write_bytes(whole)
    options = {"text_column": "text"}
    refused(tmp_path, "text_column is 'text'; image-classification reads no text: leave --text-column out", IMAGE, **options)
    refused(tmp_path, "data: PATH has no column 'text'; it has image, label")
    split = tmp_path / "deep"
    picture(split / "train" / "0.png", 0)
    refused(split, "data: PATH/train/0.png lies in no class; expected every image in a folder named after its label", IMAGE)
    table = write(tmp_path / "rows.csv", csv_of(ROWS))
    refused(table, "data: PATH has 0 columns of images among text, label; expected one: an image folder", IMAGE)


# Columns and labels.


def test_columns_by_usual_names_and_by_flag(tmp_path: Path) -> None:
    assert load_examples(write(tmp_path / "a.csv", csv_of(ROWS, "sentence,category")), TEXT).labels == ("a", "b")
    both = write(tmp_path / "b.csv", "text,content,x\n" + "".join(f"{t},other,{y}\n" for t, y in ROWS))
    assert set(load_examples(both, TEXT, label_column="x").train["text"]) < {t for t, _ in ROWS}
    refused(both, "data: PATH has no column 'label'; it has text, content, x; name it with --label-column")
    refused(both, "PATH has no column 'txt'; it has text, content, x; nearest: 'text' (--text-column)", text_column="txt")
    several = write(tmp_path / "c.csv", csv_of(ROWS, "sentence,content"))
    refused(several, "data: PATH has several columns for the text: sentence, content; choose with --text-column")
    near = write(tmp_path / "d.csv", csv_of(ROWS, "texts,Label"))
    refused(near, "data: PATH has no column 'text'; it has texts, Label; nearest: 'texts'; name it with --text-column")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        ([2.0, 10.0, 1], ("1", "2", "10")),
        ([True, False, True], ("False", "True")),
        (["nan", "x", "a"], ("a", "nan", "x")),
    ],
)
def test_the_order_of_labels(values: list[Any], labels: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl_of([(str(i), values[i % 3]) for i in range(12)]))
    assert load_examples(path, TEXT).labels == labels


def test_numbers_written_differently_are_different_labels_in_a_fixed_order() -> None:
    assert in_order({"1.0", "1", "01", "0.5"}) == ("0.5", "01", "1", "1.0")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\na,b\n\nc,\n", "PATH, line 4: 'label' is missing; fill it in"),
        ("x.csv", "text,label\na,b\nc,  \n", "PATH, line 3: 'label' is missing"),
        ("x.csv", "text,label\na,b\n ,b\n", "PATH, line 3: the text is empty; fill it in or remove the row"),
        ("x.csv", 'text,label\n"a\nb",b\nc,d,e\n', "PATH, line 4: 3 value(s); expected 2 (text, label); a text with commas"),
        ("x.csv", 'text,label\na,b\n"c,d\n', "PATH, line 3: unexpected end of data; expected a quoted text to end"),
        ("x.csv", "text,text\na,b\n", "PATH, line 1: the column 'text' is there twice; expected every name once"),
        ("x.csv", "", "PATH is empty; expected a first line that names the columns"),
        ("x.csv", "text,label\n", "data: PATH has no rows; expected at least one"),
        ("x.jsonl", "", "data: PATH has no rows"),
        ("x.json", "[]", "data: PATH has no rows"),
        ("x.csv", "text,label\na,b\nc,b\n", "data: all train rows have the label 'b'; expected at least two labels"),
        ("x.csv", "text,label\na,b\nc,d\n", "no validation split can be cut off 2 train row(s) of 2 label(s)"),
        (
            "x.jsonl",
            '{"text": "a", "label": 1}\n\n{"text": }\n',
            "PATH, line 3: no JSON: Expecting value; expected an object a",
        ),
        ("x.jsonl", '{"text": "a", "label": 1}\n3', "PATH, line 2: got int; expected an object with a value for every column"),
        ("x.json", '[{"text": "a"},\n 3]', "PATH, row 2: got int; expected an object"),
        ("x.json", '[{"text": "a"},\n 3', "PATH, line 2: no JSON"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": 7, "label": 1}', "PATH, line 2: 'text' is 7 (int); expected a text"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"label": 1}', "PATH, line 2: 'text' is missing; expected a text"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "PATH, line 2: 'label' is missing"),
        ("x.jsonl", '{"text": "a", "label": NaN}', "PATH, line 1: 'label' is missing"),
        ("x.jsonl", '{"text": "a", "label": 0.5}', "PATH, line 1: 'label' is 0.5; expected the name or the whole number of a"),
        ("x.jsonl", '{"text": "a", "label": [1]}', "PATH, line 1: 'label' is [1]; expected the name or the whole number"),
        ("x.parquet", "PAR1", "PATH could not be read as Parquet: "),
        ("x.txt", "a", "data: PATH is of an unknown type (.txt); expected a file (.csv, .tsv, .jsonl"),
        ("x", "a", "data: PATH is of an unknown type (no ending); expected a file (.csv"),
    ],
)
def test_a_file_that_cannot_be_used(name: str, content: str, message: str, tmp_path: Path) -> None:
    refused(write(tmp_path / name, content), message)


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,label\nfine,a\ncaf\xe9,b\n")
    refused(path, "PATH, line 3: not UTF-8 (invalid continuation byte); expected a file saved as UTF-8")


def test_classes_saved_by_number(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    for number, message in ((-1, "row 2: 'label' is missing"), (None, "row 2: 'label' is missing")):
        path = tmp_path / str(number)
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, number]}, features=features).save_to_disk(path)
        refused(path, f"PATH, {message}; fill it in, or remove the row or its split")


# Paths and splits.


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", csv_of(ROWS))
    near = f"data: there is no file or folder PATH; did you mean {tmp_path / 'rows.csv'}?"
    refused(tmp_path / "row.csv", near, error=FileNotFoundError)
    far = f"data: there is no file or folder PATH; looked from {Path.cwd()}; expected a file (.csv"
    refused(tmp_path / "imdb" / "x", far, error=FileNotFoundError)


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.csv", csv_of(ROWS))
    assert load_examples("~/rows.csv", TEXT).labels == ("a", "b")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path / "empty" / "README.md", "")
    refused(tmp_path / "empty", "data: PATH holds nothing to read; expected a file (.csv")
    for name in ("train.csv", "val.csv", "dev.csv"):
        write(tmp_path / "two" / name, csv_of(ROWS))
    refused(tmp_path / "two", "data: PATH holds 2 validation splits (dev.csv, val.csv); expected one")
    for name in ("test.csv", "more.csv"):
        write(tmp_path / "none" / name, csv_of(ROWS))
    refused(tmp_path / "none", "data: PATH holds test.csv, more.csv, but no train split; expected one named train")
    write(tmp_path / "broken" / "dataset_info.json", "{}")
    refused(tmp_path / "broken", "data: the dataset saved in PATH could not be read: ")


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", csv_of(ROWS))
    write(tmp_path / "test.csv", csv_of([("t", "c"), ("u", "a"), ("v", "d")]))
    refused(tmp_path, "data: the test split has 2 label(s) that the train split lacks: 'c', 'd'; expected among 'a', 'b'")
    write(tmp_path / "test.csv", "text,label\n")
    refused(tmp_path, "data: the test split of PATH has no rows; expected at least one")
    write(tmp_path / "test.csv", csv_of(ROWS, "text,y"))
    refused(tmp_path, "data: the test split of PATH has no column 'label'; it has text, y")


def test_a_task_or_share_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", csv_of(ROWS))
    refused(path, "task is 'tagging'; expected one of text-classification, image-classification, causal-lm", "tagging")
    for share in (0.0, 1.0, float("nan")):
        refused(path, f"validation is {share}; expected a share of the rows, more than 0 and less than 1", validation=share)


# Held-out rows.


def keys(*texts: str) -> list[bytes]:
    return [text_key(text) for text in texts]


def test_identical_inputs_never_stand_on_both_sides(tmp_path: Path) -> None:
    copies = [(f"Text  {i % 50}" if i % 3 else f"text {i % 50} ", "ab"[i % 2]) for i in range(200)]
    for seed in range(20):
        data = load_examples(write(tmp_path / "rows.csv", csv_of(copies)), TEXT, seed=seed)
        train, held = ({text_key(t) for t in split["text"]} for split in (data.train, data.validation))
        assert not train & held and len(held) == 5 and len(data.validation) == 20
        assert len(data.notes) == 1


def test_held_out_rows_depend_on_the_seed_and_not_on_the_order() -> None:
    texts, labels = [f"text {i}" for i in range(100)], ["ab"[i % 2] for i in range(100)]
    chosen = {seed: {texts[row] for row in hold_out(keys(*texts), labels, 0.1, seed)[1]} for seed in (0, 1, 0, -1)}
    assert len({frozenset(c) for c in chosen.values()}) == 3
    held = hold_out(keys(*texts[::-1]), labels[::-1], 0.1, 0)[1]
    assert {texts[::-1][row] for row in held} == chosen[0]


def test_held_out_rows_have_the_labels_in_proportion() -> None:
    labels = ["often"] * 800 + ["seldom"] * 150 + ["rarely"] * 50
    stay, held = hold_out(keys(*map(str, range(1000))), labels, 0.1, 0)
    counts = Counter(labels[row] for row in held)
    assert stay == sorted(set(range(1000)) - set(held)) and held == sorted(held)
    for label, expected in (("often", 80), ("seldom", 15), ("rarely", 5)):
        assert abs(counts[label] - expected) <= 1
    assert len(held) == 100


def test_no_label_leaves_the_train_split() -> None:
    labels = [str(i) for i in range(50)] + ["many"] * 50
    for seed in range(10):
        stay, held = hold_out(keys(*map(str, range(100))), labels, 0.4, seed)
        assert {labels[row] for row in stay} == set(labels) and len(held) == 40
    # one text of two labels, the only row of the second
    stay, _ = hold_out(keys("x", "x", "y", "z"), ["a", "b", "a", "a"], 0.5, 0)
    assert {0, 1} <= set(stay)
    for seed in range(10):  # all labels have few rows: the shares add up over the labels
        assert len(hold_out(keys(*map(str, range(60))), [str(i // 3) for i in range(60)], 0.1, seed)[1]) == 6


def test_nothing_to_hold_out() -> None:
    for texts in (["x"], ["x", "X "]):
        with pytest.raises(ValueError, match=r"no validation split can be cut off \d train row\(s\) of 1 label\(s\)"):
            hold_out(keys(*texts), ["a"] * len(texts), 0.1, 0)
    assert hold_out(keys("x", "y"), ["a", "a"], 0.1, 0)[1] in ([0], [1])


def test_rows_that_are_shared() -> None:
    assert num_shared(keys("a b", "c"), keys("A  B", "a b", "d")) == 2
    assert num_shared(keys("a"), []) == num_shared([], keys("a")) == 0


# Nothing is left behind.


def test_nothing_is_written(tmp_path: Path) -> None:
    """In a process with a home of its own, which must stay as it is, as must the data."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    write(work / "rows.csv", csv_of(ROWS))
    _parquet(work / "rows.parquet")
    picture(work / "images" / "a" / "0.png", 1)
    picture(work / "images" / "a" / "1.png", 2)
    picture(work / "images" / "b" / "2.png", 3)
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}).save_to_disk(work / "saved")
    before = sorted(str(p) for p in work.rglob("*"))
    code = (
        "from paring.recipes.data import load_examples as e\n"
        "for p in ('rows.csv', 'rows.parquet', 'saved'): d = e(p, 'text-classification'); list(d.train)\n"
        "list(e('images', 'image-classification').train)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=work, env=environment)
    assert sorted(str(p) for p in work.rglob("*")) == before
    assert [p for p in home.rglob("*") if p.is_file()] == []
