"""A text classifier of a few thousand weights, and texts of ten words that it can learn."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

WORDS = ["slice", "row", "column", "thin", "wide", "moves", "stays", "matrix", "weight", "small"]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", "</s>", *WORDS])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=8
    )


def save_base(folder: Path, seed: int = 0) -> Path:
    """A BERT without a head, as a user's folder."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 16}
    # Weights as large as trained ones: those of a new model hardly tell words apart.
    BertModel(BertConfig(**shape, max_position_embeddings=16, initializer_range=0.3)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Different texts about rows, about columns and about neither; none of another seed's."""
    generator = torch.Generator().manual_seed(seed)
    subjects = ("row", "column", "slice")
    found: dict[str, str] = {}
    while len(found) < count:
        subject = subjects[len(found) % 3]
        others = [WORDS[i] for i in torch.randint(3, 10, (5,), generator=generator).tolist()]
        place = int(torch.randint(0, 6, (1,), generator=generator))
        text = " ".join([*others[:place], subject, *others[place:]])
        if (sum(map(ord, text)) % 4 == seed % 4) and text not in found:
            found[text] = subject if subject != "slice" else "neither"
    return list(found.items())


def write_rows(path: Path, rows: Iterable[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path
