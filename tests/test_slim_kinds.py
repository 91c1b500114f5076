"""``paring slim`` of an image classifier and of a language model, each from what ``paring tune`` wrote."""

import json
from pathlib import Path

import pytest
import torch

import paring
from paring.cli.main import main
from small_text import WORDS, tokenizer

STEPS = ("--max-steps", "40", "--batch-size", "16", "--learning-rate", "0.02")


def test_an_image_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paring.tasks.digits import accuracy, load_splits
    from paring.tasks.digits.folders import write_image_folder
    from paring.tasks.digits.vit import new_model

    new_model(0).save_pretrained(tmp_path / "vit")
    digits = write_image_folder(None, tmp_path / "digits")
    more = ["--data", str(digits), "--task", "image-classification", "--out", str(tmp_path / "tuned")]
    assert (
        main(["tune", str(tmp_path / "vit"), *more, "--max-steps", "60", "--batch-size", "32", "--learning-rate", "0.01"]) == 0
    )
    out = tmp_path / "small.delta.safetensors"
    rows = ["--calibration", str(digits / "validation"), "--test", str(digits / "test"), "--batch-size", "100"]
    given = [
        "slim",
        str(tmp_path / "tuned"),
        str(out),
        "--base",
        str(tmp_path / "vit"),
        *rows,
        "--keep",
        "0.3",
        "--steps",
        "3",
    ]
    capsys.readouterr()
    # Tensors of this model have other names on disk than in memory; without rows, too.
    assert main([*given[:5], "--keep", "0.3"]) == 0
    plain = paring.load_delta(out)
    assert plain.facts["method"] == "rescaled" and plain.facts["scores"] == {}
    out.unlink()
    assert main(given) == 0
    assert capsys.readouterr().err == ""  # no bars, no warnings of others
    facts = paring.load_delta(out).facts
    assert facts["calibration"]["rows"] == 256 and set(facts["scores"]) == {"calibration", "test"}
    model = type(new_model(0)).from_pretrained(tmp_path / "vit").eval()
    paring.load_delta(out, model).apply(model)
    test = load_splits()["test"]
    # The files hold 256 grey levels of the digits' 17, so that a row at the border may change sides.
    assert facts["scores"]["test"] == pytest.approx(accuracy(model, test.images, test.labels), abs=0.01)
    assert 0.2 < facts["scores"]["test"] <= facts["tuned_scores"]["test"] + 0.05
    assert main([*given[:-4], "--test", str(digits / "validation"), *given[-4:], "--overwrite"]) == 2
    assert main(["slim", *given[1:5], "--calibration", str(digits / "test"), *rows[2:4], "--keep", "0.3", "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "--calibration and --test share " in error and ".png is " in error


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 16}
    config = LlamaConfig(**shape, max_position_embeddings=16, pad_token_id=0, eos_token_id=2, bos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer().save_pretrained(tmp_path / "llama")
    every = [f"thin slice moves {WORDS[i % 10]} stays {WORDS[i // 10]}" for i in range(100)]
    for name, texts in (("train", every[::2]), ("calibration", every[1::4]), ("test", every[3::4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    more = ["--data", str(tmp_path / "train.jsonl"), "--task", "causal-lm", "--out", str(tmp_path / "tuned")]
    assert main(["tune", str(tmp_path / "llama"), *more, *STEPS]) == 0
    rows = ["--calibration", str(tmp_path / "calibration.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    given = ["--base", str(tmp_path / "llama"), *rows, "--keep", "0.2", "--budget", "10", "--method", "auto"]
    out = tmp_path / "small.delta.safetensors"
    assert main(["slim", str(tmp_path / "tuned"), str(out), *given, "--subspaces", "layer"]) == 0
    facts = paring.load_delta(out).facts
    model = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    batch = tokenizer()(every[3::4], return_tensors="pt")
    ids = batch["input_ids"]
    losses = []
    for vector in (paring.load_delta(out, model), paring.load_delta(tmp_path / "tuned" / "model.delta.safetensors", model)):
        with vector.apply(model), torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))  # all of one length
    assert [facts["scores"]["test"], facts["tuned_scores"]["test"]] == pytest.approx(losses, rel=1e-4)
    said = capsys.readouterr().out
    assert f"Test loss {facts['scores']['test']:.4f}, the fine-tune's {losses[1]:.4f}" in said and "validation loss" in said
