"""Models with different vocabularies made to agree: rows of embeddings and heads are put in the order of one tokenizer.

    tokenizer_source: base     the base's tokens, in its order
    tokenizer_source: union    these, then those that only others have: plain tokens first, then added ones, by model and number

A model that lacks a token gets a row for it before models are merged: the base's, if it has the token; that of the one model
that has it; the mean of all that have it (mergekit's rule). Vocabularies are read from ``tokenizer.json``; a token without a
row in its model's embeddings counts as lacking. The output has as many rows as its tokenizer has tokens: no padding.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.fuse.config import Reference
from paring.fuse.models import Model, model_config
from paring.fuse.plan import Job, Plan

_FILE = "tokenizer.json"
# Files of slow tokenizers, which say the same as tokenizer.json; of a union they would no longer.
REPLACED = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens, and where each model has them.

    Attributes:
        size: rows of the output.
        rows: for each model, its row for each row of the output; -1: it lacks the token.
        base: whose rows come first in making up for those that are lacking; None: nobody's.
        files: to be written with the output.
    """

    size: int
    rows: Mapping[Reference, Tensor]
    base: Reference | None
    files: Mapping[str, bytes]

    def info(self, job: Job) -> TensorInfo:
        """Of an output that has a row for each token."""
        return TensorInfo(job.info.dtype, torch.Size((self.size, *job.info.shape[1:])))

    def held_bytes(self, job: Job) -> int:
        """What aligning a tensor takes: a copy of each input in fp32."""
        return 4 * self.info(job).shape.numel() * (len(job.origins) + 1)

    def aligned(self, job: Job, models: Sequence[Tensor], base: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The inputs of a tensor with one row for each token of the output, in fp32.

        Args:
            models, base: weights as the models have them, in the order of ``job.sources``.
        """
        every = list(zip((o.model for o in job.origins), [*models, *([] if base is None else [base])], strict=True))
        own = {reference: self._own(reference, tensor) for reference, tensor in every}
        rows = {reference: self.rows[reference].to(tensor.device) for reference, tensor in own.items()}
        has = torch.stack([row >= 0 for row in rows.values()])
        count = has.sum(0)
        fill = torch.stack([own[r] for r in own]).sum(0) if bool((count < len(rows)).any()) else None
        if fill is not None:
            fill /= count.clamp(min=1).view(-1, *[1] * (fill.ndim - 1))
            if self.base is not None and self.base in own:
                there = rows[self.base] >= 0
                fill[there] = own[self.base][there]
            for reference, row in rows.items():
                own[reference][row < 0] = fill[row < 0]
        found = [own[o.model] for o in job.sources]
        return found, (own[job.base.model] if job.base else None)

    def _own(self, reference: Reference, tensor: Tensor) -> Tensor:
        """A model's rows in the output's order; zero where it lacks the token."""
        row = self.rows[reference].to(tensor.device)
        found = tensor.float()[row.clamp(min=0)]
        found[row < 0] = 0
        return found


def align_vocabularies(plan: Plan) -> Vocabulary | None:
    """The output's vocabulary; None where the configuration asks for none.

    Raises:
        DeltaError: a model has no ``tokenizer.json``, or a damaged one.
    """
    if plan.config.tokenizer is None:
        return None
    jobs = [job for job in plan.jobs if job.vocabulary]
    if not jobs:
        raise plan.config.error("tokenizer_source", "no tensor with a row for each token was found; leave tokenizer_source out")
    taking_part = list(dict.fromkeys([plan.main, *(o.model for job in jobs for o in job.origins)]))
    tokenizers = {reference: _Tokenizer(plan.models[reference]) for reference in taking_part}
    known = {r: tokenizers[r].tokens(_num_rows(plan, jobs, r)) for r in taking_part}
    out = dict(known[plan.main])
    new: list[dict[str, Any]] = []
    if plan.config.tokenizer == "union":
        new = _missing(out, tokenizers, known)
    size = max(out.values()) + 1
    rows = {}
    for reference, tokens in known.items():
        row = torch.full((size,), -1, dtype=torch.int64)
        for token, place in out.items():
            row[place] = tokens.get(token, -1)
        rows[reference] = row
    files = {_FILE: tokenizers[plan.main].with_tokens(new)} if new else {}
    return Vocabulary(size, rows, plan.config.base, files)


class _Tokenizer:
    """A ``tokenizer.json``."""

    def __init__(self, model: Model) -> None:
        folder = model.folder or (model.base.folder if model.base else None)
        self.path = (folder or Path()) / _FILE
        if folder is None or not self.path.is_file():
            raise DeltaError(
                f"{model.called} has no {_FILE}, by which vocabularies are aligned; save its tokenizer beside it "
                "(AutoTokenizer.from_pretrained(…).save_pretrained)"
            )
        try:
            self.content: Any = json.loads(self.path.read_text("utf-8"))
            self.vocabulary = self._plain(self.content["model"]["vocab"])
            self.added = {str(e["content"]): dict(e) for e in self.content.get("added_tokens") or []}
            if not all(type(e["id"]) is int and e["id"] >= 0 for e in self.added.values()):
                raise ValueError("an added token without a number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DeltaError(f"{self.path} is no tokenizer that can be read: {str(error)[:200]}; save it again") from None

    def tokens(self, num_rows: int) -> dict[str, int]:
        """Token -> number, in the order of the numbers, of those that have a row."""
        every = self.vocabulary | {token: e["id"] for token, e in self.added.items()}
        return {t: i for t, i in sorted(every.items(), key=lambda item: item[1]) if i < num_rows}

    def with_tokens(self, new: Sequence[dict[str, Any]]) -> bytes:
        content = {**self.content, "added_tokens": [*(self.content.get("added_tokens") or []), *new]}
        return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"

    @staticmethod
    def _plain(found: Any) -> dict[str, int]:
        """WordPiece, BPE and word level have token -> number; unigram a list of (token, score)."""
        pairs = found.items() if isinstance(found, dict) else ((row[0], i) for i, row in enumerate(found))
        tokens = {str(token): number for token, number in pairs}
        if not all(type(n) is int and n >= 0 for n in tokens.values()):
            raise ValueError("a token without a number")
        return tokens


def _missing(
    out: dict[str, int], tokenizers: Mapping[Reference, _Tokenizer], known: Mapping[Reference, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Adds to ``out`` the tokens of the other models, and returns their entries for ``added_tokens``."""
    new: list[dict[str, Any]] = []

    def add(entry: dict[str, Any]) -> None:
        entry["id"] = out[entry["content"]] = max(out.values()) + 1
        new.append(entry)

    for tokens in known.values():
        for token in tokens:
            if token not in out and not any(token in t.added for t in tokenizers.values()):
                plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
                add({"id": 0, "content": token, **plain})
    for reference, tokens in known.items():
        others = [tokenizers[reference], *tokenizers.values()]
        for token in tokens:
            if token not in out:
                add(dict(next(t.added[token] for t in others if token in t.added)))
    return new


def _num_rows(plan: Plan, jobs: Sequence[Job], reference: Reference) -> int:
    """Of a model's embeddings: tokens beyond have none."""
    model = plan.models[reference]
    named = [model.infos[o.name].shape[0] for job in jobs for o in job.origins if o.model == reference]
    config = model_config(model) or {}
    return min(named) if named else int(config.get("vocab_size") or 2**31)
