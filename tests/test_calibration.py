"""Rows that a search is scored on: read, kept apart, made into batches once; and the scores of a model on them."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import bert
from paring.recipes.calibration import Files, Splits, load_splits, numbered
from paring.recipes.scoring import Objective, Scores, scoring
from paring.recipes.settings import TuneSettings
from small_text import texts, write_rows

LABELS = ("column", "neither", "row")
SETTINGS = TuneSettings(model="-", data="-", out="-", task="text-classification")


def read(files: Files, settings: TuneSettings = SETTINGS, labels: tuple[str, ...] = LABELS) -> Splits:
    return load_splits(files, settings, labels, seed=0)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    paths = {name: str(write_rows(tmp_path / f"{name}.csv", texts(30, i))) for i, name in enumerate(("calibration", "test"))}
    return Files(paths["calibration"], None, paths["test"])


def test_three_files(files: Files, tmp_path: Path) -> None:
    given = replace(files, validation=str(write_rows(tmp_path / "v.csv", texts(9, 2))), held_out=0.5)
    splits = read(given)
    assert splits.validation is not None and splits.test is not None
    assert (len(splits.calibration), len(splits.validation), len(splits.test)) == (30, 9, 30)  # nothing is held out
    rows = numbered(splits.calibration, LABELS)
    assert list(zip(rows["text"], (LABELS[i] for i in rows["label"]), strict=True)) == texts(30, 0)
    assert splits.notes == () and splits.digest == read(files).digest
    write_rows(
        Path(files.calibration), [*texts(29, 0), (texts(30, 0)[29][0], "row" if texts(30, 0)[29][1] != "row" else "column")]
    )
    assert read(files).digest != splits.digest  # another label is another calibration set


def test_without_validation_a_share_is_held_out(files: Files) -> None:
    splits = read(replace(files, held_out=0.3))
    assert splits.validation is not None
    assert (len(splits.calibration), len(splits.validation)) == (21, 9)
    assert not set(splits.calibration.keys) & set(splits.validation.keys)
    assert splits.notes == ("no --validation: 9 of 30 calibration rows are held out to select on (seed 0)",)
    place = splits.validation.place(0)
    line = int(place.rpartition(" ")[2])
    assert Path(files.calibration).read_text().splitlines()[line - 1].startswith(splits.validation.inputs["text"][0])


@pytest.mark.parametrize(("one", "other"), [("calibration", "test"), ("calibration", "validation"), ("validation", "test")])
def test_rows_in_two_files_are_refused(tmp_path: Path, one: str, other: str) -> None:
    """By content: case and white space are none."""
    rows = {name: texts(12, i) for i, name in enumerate(("calibration", "validation", "test"))}
    text, label = rows[one][4]
    rows[other][7] = (f"  {text.upper()} ", label)
    paths = {name: write_rows(tmp_path / f"{name}.csv", r) for name, r in rows.items()}
    expected = (
        f"--{one} and --{other} share 1 row(s): {paths[one]}, line 6 is {paths[other]}, line 9; expected none: a score on rows "
        "that were searched or selected on is flattered. Remove them from one of the two"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read(Files(*map(str, paths.values())))


def test_bad_rows(files: Files, tmp_path: Path) -> None:
    at = Path(files.calibration)
    cases = {
        "empty": ([], {}, rf"--calibration: {at} has no rows; expected at least one"),
        "label": (
            [("thin row", "row"), ("wide slice", "slice"), ("thin slice", "slice")],
            {},
            rf"--calibration: {at}, line 3: the model knows no label 'slice' \(2 such row\(s\)\); expected among 'column', ",
        ),
        "column": (texts(3, 0), {"label_column": "lable"}, r"--calibration: .* has no column 'lable'; .*nearest: 'label'"),
        "text": ([("  ", "row")], {}, rf"--calibration: {at}, line 2: the text is empty"),
    }
    for rows, changes, message in cases.values():
        write_rows(at, rows)
        with pytest.raises(ValueError, match=message):
            read(files, replace(SETTINGS, **changes))
    with pytest.raises(FileNotFoundError, match=r"--test: there is no file or folder .*tset.csv; did you mean .*test.csv"):
        read(Files(str(write_rows(at, texts(3, 0))), None, str(tmp_path / "tset.csv")))
    with pytest.raises(
        ValueError, match=r"--calibration: .* has 1 row\(s\), too few to select on some and search on the others"
    ):
        read(Files(str(write_rows(at, texts(1, 0))), held_out=0.5))
    for split in ("train", "validation"):
        write_rows(tmp_path / "both" / f"{split}.csv", texts(3, 0))
    with pytest.raises(ValueError, match=r"--calibration: .*both holds several splits \(train, validation\); expected one"):
        read(Files(str(tmp_path / "both")))


def test_a_head_without_names_knows_numbers(files: Files) -> None:
    rows = [(text, str(LABELS.index(label))) for text, label in texts(6, 0)]
    write_rows(Path(files.calibration), rows)
    splits = read(Files(files.calibration), labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert numbered(splits.calibration, ("LABEL_0", "LABEL_1", "LABEL_2"))["label"] == [int(label) for _, label in rows]
    with pytest.raises(ValueError, match="the model knows no label '2'"):
        read(Files(files.calibration), labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(ValueError, match="the model knows no label '"):
        read(Files(files.calibration))  # names are names


# Scores.


def rows(count: int = 11) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [
        {"input_ids": torch.randint(1, 50, (n,), generator=generator).tolist(), "labels": i % 3} for i, n in enumerate(lengths)
    ]


def collate(batch: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in batch]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {
        "input_ids": padded,
        "attention_mask": (padded != 0).long(),
        "labels": torch.tensor([row["labels"] for row in batch]),
    }


def collate_tokens(batch: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    made = collate(batch)
    return made | {"labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}


def test_scores_are_means_over_rows() -> None:
    model, every = bert().eval(), rows()
    losses, right = [], []
    with torch.no_grad():
        for row in every:
            out = model(**collate([row]))
            losses.append(float(out.loss))
            right.append(int(out.logits.argmax()) == row["labels"])
    for size in (1, 3, 64):
        made = scoring("text-classification", every, collate, size)
        assert made.to("cpu").scores(model) == made.scores(model)
        found = made.scores(model)
        assert made.num_rows == 11 and found.accuracy == sum(right) / 11
        assert found.loss == pytest.approx(sum(losses) / 11, rel=1e-5)
        assert Objective(made, "loss")(model) == found.loss and Objective(made, "accuracy")(model) == 1 - sum(right) / 11
    assert 0 < sum(right) < 11
    lengths = [batch["input_ids"].shape[1] for batch in scoring("text-classification", every, collate, 3).batches]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]  # the short ones together


def test_a_language_model_is_scored_by_its_tokens() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=16)).eval()
    every = [row for row in rows() if len(row["input_ids"]) > 2]
    total = count = 0.0
    with torch.no_grad():
        for row in every:
            predicted = len(row["input_ids"]) - 1  # all but the first
            total += predicted * float(model(**collate_tokens([row])).loss)
            count += predicted
    for size in (1, 4):
        found = scoring("causal-lm", every, collate_tokens, size).scores(model)
        assert found.loss == pytest.approx(total / count, rel=1e-5) and found.accuracy is None
        assert found.metric == ("loss", found.loss)
    with pytest.raises(ValueError, match="no text has two tokens"):
        scoring("causal-lm", [{"input_ids": [3]}], collate_tokens, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("goal", ["loss", "accuracy"])
def test_outputs_that_are_no_numbers_score_nan(value: float, goal: str) -> None:
    model = bert().eval()
    with torch.no_grad():
        model.classifier.bias[1] = value
    made = scoring("text-classification", rows(), collate, 4)
    assert math.isnan(Objective(made, goal)(model))  # type: ignore[arg-type]
    assert made.scores(model).as_dict()["loss"] is None


def test_the_better_scores_rank_lower() -> None:
    order = [Scores(0.9, 0.9), Scores(0.5, 0.8), Scores(0.6, 0.8), Scores(9.0, 0.1), Scores(math.nan, 0.9)]
    assert sorted(order[2:] + order[:2], key=lambda s: s.rank) == order
    texts_only = [Scores(0.4, None), Scores(0.5, None), Scores(math.nan, None)]
    assert sorted(texts_only[1:] + texts_only[:1], key=lambda s: s.rank) == texts_only
