"""``tokenizer_source``: models with different vocabularies."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merges import edit, tuned, whole, write
from paring import DeltaError
from paring.fuse.config import read_config
from paring.fuse.engine import fuse
from paring.fuse.plan import make_plan
from paring.fuse.record import run_key

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
WORDS = ["<unk>", *"abcdefghij"]


def model(vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=vocabulary, max_position_embeddings=8, tie_word_embeddings=False, pad_token_id=0)
    )


def save(folder: Path, words: list[str], added: list[str], *, seed: int, rows: int | None = None, kind: str = "BPE") -> str:
    """A model and its tokenizer, made by the library that reads it later."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {w: i for i, w in enumerate(words)}
    if kind == "Unigram":
        plain = Tokenizer(models.Unigram([(w, -1.0) for w in words], unk_id=0))
    else:
        plain = Tokenizer(models.BPE(numbers, [], unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(a, special=True, normalized=False) for a in added])
    tuned(model(rows or len(words) + len(added)), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def family(tmp_path: Path) -> list[str]:
    return [
        save(tmp_path / "base", WORDS, ["<|im|>"], seed=0, rows=16),  # four rows of padding
        save(tmp_path / "one", [*WORDS[:8], "zz", "yy"], ["<|im|>", "<|x|>"], seed=1),
        save(tmp_path / "two", list(reversed([*WORDS, "zz"])), [], seed=2),
    ]


def rows(folder: str | Path, table: str) -> dict[str, Tensor]:
    """A row of each token that has one."""
    from transformers import AutoTokenizer

    tensor = whole(folder)[table]
    return {t: tensor[i] for t, i in AutoTokenizer.from_pretrained(folder).get_vocab().items() if i < len(tensor)}


def config(paths: list[str], source: str, method: str = "task_arithmetic") -> dict[str, Any]:
    models = [{"model": p, "parameters": {"weight": 0.5 + i / 4}} for i, p in enumerate(paths[1:])]
    return {"merge_method": method, "base_model": paths[0], "models": models, "tokenizer_source": source}


def expected(paths: list[str], table: str, tokens: list[str]) -> dict[str, Tensor]:
    """Row by row, as mergekit's documentation has it."""
    models = [rows(p, table) for p in paths]
    out = {}
    for token in tokens:
        has = [m for m in models if token in m]
        lacking = models[0][token] if token in models[0] else torch.stack([m[token] for m in has]).mean(0)
        base, *others = (m.get(token, lacking) for m in models)
        out[token] = base + sum((0.5 + i / 4) * (o - base) for i, o in enumerate(others))
    return out


@pytest.mark.parametrize("source", ["base", "union"])
def test_rows_by_token(tmp_path: Path, source: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    paths = family(tmp_path)
    fuse(write(tmp_path, config(paths, source)), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    vocabulary = tokenizer.get_vocab()
    plain = {**{w: i for i, w in enumerate(WORDS)}, "<|im|>": 11}
    assert vocabulary == plain | ({} if source == "base" else {"zz": 12, "yy": 13, "<|x|>": 14})
    for table in TABLES:
        found = rows(tmp_path / "out", table)
        assert len(whole(tmp_path / "out")[table]) == len(vocabulary) == len(found)
        for token, row in expected(paths, table, list(vocabulary)).items():
            torch.testing.assert_close(
                found[token], row, rtol=1e-6, atol=1e-7, msg=lambda text, token=token: f"{token}: {text}"
            )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(vocabulary)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if source == "union":
        ids = tokenizer("a zz <|x|> b", return_tensors="pt").input_ids
        assert ids.tolist() == [[1, 12, 14, 2]] and made(ids).logits.shape[-1] == 15
        assert tokenizer.decode([12, 14]).split() == ["zz", "<|x|>"]


def test_whole_tensors_besides(tmp_path: Path) -> None:
    paths = family(tmp_path)
    fuse(write(tmp_path, config(paths, "union")), tmp_path / "out")
    base, one, two, out = (whole(p) for p in (*paths, tmp_path / "out"))
    for name in set(out) - set(TABLES):
        expected = base[name] + 0.5 * (one[name] - base[name]) + 0.75 * (two[name] - base[name])
        torch.testing.assert_close(out[name], expected, rtol=1e-6, atol=1e-7)


def test_without_a_base_a_lacking_row_is_the_mean(tmp_path: Path) -> None:
    """Of all that have it; the first model's tokens come first."""
    paths = family(tmp_path)
    asked = {"merge_method": "linear", "models": config(paths, "")["models"], "tokenizer": {"source": "union"}}
    third = save(tmp_path / "three", WORDS[:6], [], seed=3)
    asked["models"].append({"model": third, "parameters": {"weight": 1.0}})
    fuse(write(tmp_path, asked), tmp_path / "out")
    found, (one, two, three) = rows(tmp_path / "out", TABLES[0]), (rows(p, TABLES[0]) for p in (paths[1], paths[2], third))
    mean = (one["zz"] + two["zz"]) / 2
    torch.testing.assert_close(found["zz"], (0.5 * one["zz"] + 0.75 * two["zz"] + mean) / 2.25)
    torch.testing.assert_close(found["a"], (0.5 * one["a"] + 0.75 * two["a"] + three["a"]) / 2.25)
    torch.testing.assert_close(found["<|x|>"], one["<|x|>"])


def test_a_token_without_a_row_counts_as_lacking(tmp_path: Path) -> None:
    """A tokenizer may know more tokens than its model has rows."""
    paths = [save(tmp_path / "base", WORDS, [], seed=0), save(tmp_path / "one", WORDS, [], seed=1, rows=8)]
    fuse(write(tmp_path, config(paths, "base")), tmp_path / "out")
    out, base = whole(tmp_path / "out")[TABLES[0]], whole(paths[0])[TABLES[0]]
    assert len(out) == len(WORDS) and torch.equal(out[8:], base[8:]) and not torch.equal(out[:8], base[:8])


@pytest.mark.parametrize("source", ["base", "union"])
def test_a_number_that_is_no_token_keeps_its_row(tmp_path: Path, source: str) -> None:
    """Tokenizers leave numbers out, for tokens to come: such a row of the base stays as it is."""
    paths = [save(tmp_path / "base", WORDS, [], seed=0, rows=16), save(tmp_path / "one", WORDS, [], seed=1, rows=14)]
    for path, number in zip(paths, (15, 13), strict=True):
        content = json.loads((Path(path) / "tokenizer.json").read_text())
        content["model"]["vocab"]["q"] = number
        (Path(path) / "tokenizer.json").write_text(json.dumps(content))
    fuse(write(tmp_path, config(paths, source)), tmp_path / "out")
    base, one, out = (whole(p)[TABLES[0]] for p in (*paths, tmp_path / "out"))
    assert len(out) == 16 and torch.equal(out[11:15], base[11:15])
    torch.testing.assert_close(out[15], base[15] + 0.5 * (one[13] - base[15]))
    fuse(write(tmp_path, config(paths, source, "linear") | {"base_model": paths[0]}), tmp_path / "linear")
    out = whole(tmp_path / "linear")[TABLES[0]]  # the base gives configuration and tokenizer alone
    assert torch.equal(out[11:13], one[11:13]) and torch.equal(out[15], one[13])


ALIGNING = """
import json, sys, torch
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.fuse.config import Reference
from paring.fuse.plan import Job, Origin
from paring.fuse.tokens import Vocabulary
torch.set_num_threads(1)

def status(key):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(key))

size, width, names = 4000, 1000, [Reference(n) for n in "abc"]
tensors = [torch.ones(size, width, dtype=torch.bfloat16) for _ in names]
rows = {n: torch.randperm(size).where(torch.arange(size) % (i + 3) > 0, torch.tensor(-1)) for i, n in enumerate(names)}
spare = {n: torch.full((size,), -1) for n in names}
info = TensorInfo(torch.bfloat16, torch.Size((size, width)))
job = Job("w", info, tuple(Origin(n, "w") for n in names[1:]), Origin(names[0], "w"), None, ("b", "c"), vocabulary=True)
vocabulary = Vocabulary(size, rows, spare, names[0], {})
vocabulary.aligned(job, [t[:, :1] for t in tensors[1:]], tensors[0][:, :1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
found = vocabulary.aligned(job, tensors[1:], tensors[0])
print(json.dumps([vocabulary.held_bytes(job), status("VmHWM") - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be begun anew on Linux alone")
def test_aligning_takes_what_it_says() -> None:
    run = subprocess.run([sys.executable, "-c", ALIGNING], check=True, capture_output=True, text=True)
    said, took = json.loads(run.stdout)
    assert 0.9 * took - 8e6 <= said <= 1.1 * took + 8e6, (said, took)


def test_unigram_vocabularies(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / "base", WORDS, [], seed=0, kind="Unigram"),
        save(tmp_path / "one", [*WORDS[:3], "zz"], [], seed=1, kind="Unigram"),
    ]
    fuse(write(tmp_path, config(paths, "union")), tmp_path / "out")
    found = expected(paths, TABLES[0], [*WORDS, "zz"])
    assert all(torch.allclose(rows(tmp_path / "out", TABLES[0])[t], row, atol=1e-6) for t, row in found.items())


def test_files_of_a_slow_tokenizer_are_not_kept_where_they_would_be_wrong(tmp_path: Path) -> None:
    paths = family(tmp_path)
    (Path(paths[0]) / "vocab.json").write_text("{}")
    for source, kept in (("base", True), ("union", False)):
        fuse(write(tmp_path, config(paths, source)), tmp_path / f"by-{source}")
        assert (tmp_path / f"by-{source}" / "vocab.json").exists() == kept


def test_a_run_is_known_by_its_tokens(tmp_path: Path) -> None:
    """Numbers of tokens that change places make other rows, of the same weights."""
    paths, keys = family(tmp_path), []
    path = write(tmp_path, config(paths, "base"))
    for first, second in ((1, 2), (2, 1)):
        content = json.loads((Path(paths[1]) / "tokenizer.json").read_text())
        content["model"]["vocab"] |= {"a": first, "b": second}
        (Path(paths[1]) / "tokenizer.json").write_text(json.dumps(content))
        keys.append(run_key(make_plan(read_config(path)), "cpu", 1, [], {}))
    assert keys[0] != keys[1]


def test_refused(tmp_path: Path) -> None:
    paths = family(tmp_path)
    (Path(paths[1]) / "tokenizer.json").write_text('{"model": {"vocab": {"a": "b"}}}')
    with pytest.raises(DeltaError, match=r"one/tokenizer.json is no tokenizer that can be read: a token without a number"):
        fuse(write(tmp_path, config(paths, "base")), tmp_path / "out")
    (Path(paths[1]) / "tokenizer.json").unlink()
    with pytest.raises(DeltaError, match=r"one/model.safetensors has no tokenizer.json, by which vocabularies are aligned"):
        fuse(write(tmp_path, config(paths, "base")), tmp_path / "out")
    edit(paths[1], **{TABLES[0].replace(".", "__"): torch.randn(12, 9)})
    with pytest.raises(DeltaError, match=r"'model.embed_tokens.weight' has shape \[12, 9\] in .*; models of one architecture"):
        fuse(write(tmp_path, config(paths, "base")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
