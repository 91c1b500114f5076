"""``paring tune`` from the command line on real small models: a text classifier, an image classifier, a language model."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import paring
from conftest import assert_same_bits, bits
from paring.cli.main import main
from small_text import WORDS, save_base, tokenizer


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head, as a user's folder."""
    return save_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts about rows, about columns and about neither."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 96), ("validation", 24), ("test", 24)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for i in range(count):
                about = ("row", "column", "neither")[i % 3]
                rest = [WORDS[3 + (7 * i + 3 * j + len(split)) % 7] for j in range(i % 4 + 1)]
                writer.writerow((" ".join([*rest, about if about != "neither" else "slice", *(rest * (i == 5) * 3)]), about))
    return folder


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    task = [] if "--task" in more else ["--task", "text-classification"]
    return ["tune", str(model), "--data", str(data), *task, "--out", str(out), *more]


FEW = ("--max-steps", "12", "--batch-size", "8", "--learning-rate", "0.02")


def test_a_text_classifier(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(command(model, data, out, "--max-steps", "120", "--batch-size", "16", "--rank", "8")) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert sorted(p.name for p in out.iterdir() if "token" not in p.name) == [
        "README.md",
        "config.json",
        "model.delta.safetensors",
        "paring-tune.json",
        "results.json",
    ]
    assert results["scores"]["test"] > 0.9  # one word tells the classes apart
    assert f"test accuracy {results['scores']['test']:.4f}" in printed
    assert f"Trained {results['num_trainable']:,} of {results['num_weights']:,} entries at a time" in printed
    assert f"{(out / 'model.delta.safetensors').stat().st_size:,} bytes" in printed
    assert "1 of 96 train texts are longer than 8 tokens and were cut" in printed

    # What is printed last, done: the tuned model from its base, its configuration and the delta.
    torch.manual_seed(5)
    fresh = AutoModelForSequenceClassification.from_pretrained(model, config=AutoConfig.from_pretrained(out)).eval()
    assert fresh.config.id2label == {0: "column", 1: "neither", 2: "row"}
    paring.load_delta(out / "model.delta.safetensors", fresh).apply(fresh)
    with (data / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    batch = tokenizer()([r["text"] for r in rows], padding=True, truncation=True, max_length=8, return_tensors="pt")
    batch.pop("token_type_ids", None)
    guesses = [fresh.config.id2label[i] for i in fresh(**batch).logits.argmax(-1).tolist()]
    score = sum(guess == row["label"] for guess, row in zip(guesses, rows, strict=True)) / len(rows)
    assert score == pytest.approx(results["scores"]["test"])


def test_its_configuration_gives_the_same_again(model: Path, data: Path, tmp_path: Path) -> None:
    assert main(command(model, data, tmp_path / "a", *FEW, "--modes", "row", "column", "--rank", "3", "--move-steps", "4")) == 0
    config = tmp_path / "a" / "paring-tune.json"
    saved = json.loads(config.read_text())
    assert saved["modes"] == ["row", "column"] and saved["max_steps"] == 12 and saved["rank"] == 3
    assert main(["tune", "--config", str(config), "--out", str(tmp_path / "b")]) == 0
    deltas = [_values(tmp_path / name / "model.delta.safetensors") for name in "ab"]
    assert_same_bits(deltas[0], deltas[1])
    assert main(["tune", "--config", str(config), "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    other = _values(tmp_path / "c" / "model.delta.safetensors")
    assert any(not torch.equal(other[name], deltas[0][name]) for name in other if name in deltas[0])


def _values(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_recommended_slices_are_saved_as_chosen(model: Path, data: Path, tmp_path: Path) -> None:
    assert main(command(model, data, tmp_path / "a", "--max-steps", "2")) == 0
    saved = json.loads((tmp_path / "a" / "paring-tune.json").read_text())
    assert saved["rank"] == 4 and saved["modes"] == ["column"] and saved["move_steps"] is None
    assert saved["layers"] == [1] and saved["learning_rate"] == 0.02


@pytest.mark.parametrize(
    ("named", "blocks"), [(("--exclude", "value"), [1]), (("--layers", "lower:1"), "lower:1"), (("--targets", "query"), None)]
)
def test_layers_named_take_the_place_of_those_recommended(
    model: Path, data: Path, tmp_path: Path, named: tuple[str, str], blocks: Any
) -> None:
    assert main(command(model, data, tmp_path / "a", "--max-steps", "2", *named)) == 0
    saved = json.loads((tmp_path / "a" / "paring-tune.json").read_text())
    assert (saved["rank"], saved["layers"]) == (4, blocks)


def test_an_image_classifier(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from paring.tasks.digits.folders import write_image_folder
    from paring.tasks.digits.vit import new_model

    new_model(0).save_pretrained(tmp_path / "vit")
    write_image_folder(None, tmp_path / "digits")
    out = tmp_path / "out"
    more = ("--task", "image-classification", "--max-steps", "30", "--batch-size", "32", "--learning-rate", "0.01")
    assert main(command(tmp_path / "vit", tmp_path / "digits", out, *more)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["labels"] == [str(i) for i in range(10)]
    assert results["rows"] == {"train": 900, "validation": 256, "test": 385}
    assert results["scores"]["test"] > 0.25  # of ten classes, from random weights
    assert "test accuracy" in capsys.readouterr().out


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 16}
    config = LlamaConfig(**shape, max_position_embeddings=16, pad_token_id=0, eos_token_id=2, bos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer().save_pretrained(tmp_path / "llama")
    lines = [json.dumps({"text": f"thin slice moves {WORDS[i % 10]} stays {WORDS[i // 10]}"}) for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    more = ("--task", "causal-lm", "--max-steps", "20", "--batch-size", "8", "--learning-rate", "0.02", "--save-full")
    assert main(command(tmp_path / "llama", tmp_path / "texts.jsonl", out, *more)) == 0
    results = json.loads((out / "results.json").read_text())
    first = next(e["eval_loss"] for e in results["history"] if "eval_loss" in e)
    assert results["metric"] == "loss" and results["scores"]["validation"] < first
    assert "validation perplexity" in capsys.readouterr().out
    tuned, base = (LlamaForCausalLM.from_pretrained(p) for p in (out / "model", tmp_path / "llama"))
    paring.load_delta(out / "model.delta.safetensors", base).apply(base)
    assert_same_bits(bits(tuned), bits(base))


def test_ctrl_c_leaves_a_run_that_resumes_bit_for_bit(model: Path, data: Path, tmp_path: Path) -> None:
    steps = ("--max-steps", "400", "--batch-size", "4", "--rank", "3", "--modes", "row", "column", "--move-steps", "7")
    arguments = command(model, data, tmp_path / "cut", *steps, "--learning-rate", "0.01", "--eval-steps", "50")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "paring", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("step    50"):
            run.send_signal(signal.SIGINT)
            break
    rest, errors = run.communicate(timeout=120)
    assert run.returncode == 130, errors[-2000:]
    assert f"go on with: paring tune --resume --out {tmp_path / 'cut'}" in rest and "of 400" in rest
    assert not (tmp_path / "cut" / "results.json").exists()
    assert list((tmp_path / "cut" / "checkpoints").glob("checkpoint-*/slices.pt"))

    assert main(command(model, data, tmp_path / "cut", *steps)) == 2  # neither overwritten nor resumed unasked
    assert main(["tune", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert main([a if a != str(tmp_path / "cut") else str(tmp_path / "whole") for a in arguments]) == 0
    assert_same_bits(
        _values(tmp_path / "cut" / "model.delta.safetensors"), _values(tmp_path / "whole" / "model.delta.safetensors")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--label-column", "lable"), r"has no column 'lable'; it has text, label; nearest: 'label' \(--label-column\)"),
        (("--rank", "500"), "rank 500 is larger than a layer"),
        (("--targets", "encoder.layer.*.attention.self.qeury"), "matches no module of the model; the nearest are .*query"),
        (("--move-steps", "5"), "rank is None; expected a rank, where move_steps is set"),
        (("--order", "random", "--bias"), "rank is None; expected a rank, where order, bias are set"),
        (("--max-length", "99"), "max_length is 99; the model takes 8 tokens"),
        (("--precision", "fp16"), "precision is 'fp16'; without a GPU expected"),
    ],
)
def test_bad_input_is_said_in_one_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: tuple[str, ...], message: str
) -> None:
    if "--precision" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(command(model, data, tmp_path / "out", *FEW, *more)) == 2
    said = capsys.readouterr().err
    assert said.count("paring: error:") == 1
    import re

    assert re.search(message, said), said


def test_a_folder_that_holds_something_is_left_alone(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert main(command(model, data, tmp_path / "mine", *FEW)) == 2
    assert "holds other files (thesis.tex); take a new folder" in capsys.readouterr().err
    assert main(command(model, data, tmp_path / "out", *FEW)) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert main(command(model, data, tmp_path / "out", *FEW)) == 2
    assert "holds a finished run; take another folder" in capsys.readouterr().err
    assert main(["tune", "--resume", "--out", str(tmp_path / "out")]) == 2
    assert "is finished" in capsys.readouterr().err
    assert main(["tune", "--resume", "--rank", "2", "--out", str(tmp_path / "out")]) == 2
    assert "holds a run with other settings: rank was 4, now 2" in capsys.readouterr().err
    assert main(["tune", "--resume", "--out", str(tmp_path / "nowhere")]) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_head_without_room_is_refused_and_can_be_replaced(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    names = {0: "good", 1: "bad"}
    config = AutoConfig.from_pretrained(model, id2label=names, label2id={"good": 0, "bad": 1})
    AutoModelForSequenceClassification.from_pretrained(model, config=config).save_pretrained(tmp_path / "headed")
    tokenizer().save_pretrained(tmp_path / "headed")
    assert main(command(tmp_path / "headed", data, tmp_path / "out", *FEW)) == 2
    said = capsys.readouterr().err
    assert "the model's head has 2 outputs (good, bad) and no room for 3 label(s) of the data: column, neither, row" in said
    assert not (tmp_path / "out").exists()
    assert main(command(tmp_path / "headed", data, tmp_path / "out", *FEW, "--new-head")) == 0
    assert "a new head of 3 labels" in capsys.readouterr().out


def test_a_setting_of_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "settings.json").write_text('{"model": "m", "data": "d", "task": "causal-lm", "lerning_rate": 1}')
    assert main(["tune", "--config", str(tmp_path / "settings.json"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no setting 'lerning_rate'; did you mean 'learning_rate'?" in capsys.readouterr().err
    assert main(["tune", "--out", str(tmp_path / "out")]) == 2
    assert "model, data, task must be given" in capsys.readouterr().err


def test_two_lanes_meet_nowhere(model: Path, data: Path, tmp_path: Path) -> None:
    """The recommended slices, in the share of each; the new head is each task's own."""
    deltas = []
    for i in (1, 2):
        assert main(command(model, data, tmp_path / f"lane{i}", *FEW, "--lane", f"{i}/2", "--seed", str(i))) == 0
        deltas.append(paring.load_delta(tmp_path / f"lane{i}" / "model.delta.safetensors", base=model))
        assert deltas[-1].facts["slices"]["lane"] == f"{i}/2"
    one, two = deltas
    assert set(one.names) == set(two.names) and one.new == two.new == ("classifier.bias", "classifier.weight")
    assert not any(bool(((one[name] != 0) & (two[name] != 0)).any()) for name in one.names)
    with pytest.raises(SystemExit, match="2") as _:
        main(command(model, data, tmp_path / "none", "--lane"))
    assert main(command(model, data, tmp_path / "none", "--lane", "3/2")) == 2
