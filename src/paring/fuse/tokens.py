"""Models with different vocabularies made to agree: rows of embeddings and heads are put in the order of one tokenizer.

    tokenizer_source: base     the base's tokens, in its order
    tokenizer_source: union    these, then those that only others have: plain tokens first, then added ones, by model and number

A model that lacks a token gets a row for it before models are merged: the base's, if it has the token; that of the one model
that has it; the mean of all that have it (mergekit's rule). Vocabularies are read from ``tokenizer.json``; a token without a
row in its model's embeddings counts as lacking. The output has rows up to the last token: no padding. A row between them that
stands for no token in any model (tokenizers leave numbers out) is the base's own, else that of the first model that has it.
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
from paring.fuse.inputs import PIECE
from paring.fuse.models import TOKENIZER, Model, model_config
from paring.fuse.plan import Job, Plan

# Files of slow tokenizers, which say the same as tokenizer.json; of a union they would no longer.
REPLACED = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens, and where each model has them.

    Attributes:
        size: rows of the output.
        rows: for each model, its row for each row of the output; -1: it lacks the token.
        spare: likewise, its row of the same number where neither it nor the output has a token of that number.
        base: whose rows come first in making up for those that are lacking; None: nobody's.
        files: to be written with the output.
    """

    size: int
    rows: Mapping[Reference, Tensor]
    spare: Mapping[Reference, Tensor]
    base: Reference | None
    files: Mapping[str, bytes]

    def info(self, job: Job) -> TensorInfo:
        """Of an output that has a row for each token."""
        return TensorInfo(job.info.dtype, torch.Size((self.size, *job.info.shape[1:])))

    def held_bytes(self, job: Job) -> int:
        """What aligning a tensor takes: a copy of each input in fp32, and what the output is larger than the input."""
        out = self.info(job)
        return 4 * out.shape.numel() * len(job.origins) + max(0, out.nbytes - job.info.nbytes)

    def aligned(self, job: Job, models: Sequence[Tensor], base: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The inputs of a tensor with one row for each token of the output, in fp32.

        Args:
            models, base: weights as the models have them, in the order of ``job.sources``.
        """
        references, given = [o.model for o in job.origins], [*models, *([] if base is None else [base])]
        rows = [row.to(tensor.device) for row, tensor in zip(self._rows(references), given, strict=True)]
        found = [torch.empty((self.size, *tensor.shape[1:]), device=tensor.device) for tensor in given]
        first = references.index(self.base) if self.base in references else None
        block = max(1, PIECE // found[0][0].numel())
        for start in range(0, self.size, block):
            inside = slice(start, start + block)
            for whole, part in zip(found, _filled(given, [row[inside] for row in rows], first), strict=True):
                whole[inside] = part
        return found[: len(models)], (found[-1] if job.base else None)

    def _rows(self, references: Sequence[Reference]) -> list[Tensor]:
        """Of each model, its row for each row of the output; where none has the token, a spare one of the first that has it."""
        rows = [self.rows[reference] for reference in references]
        nobody = torch.stack(rows).amax(0) < 0
        for i in sorted(range(len(rows)), key=lambda i: references[i] != self.base):
            own = nobody & (self.spare[references[i]] >= 0)
            rows[i] = torch.where(own, self.spare[references[i]], rows[i])
            nobody &= ~own
        return rows


def _filled(tensors: Sequence[Tensor], rows: Sequence[Tensor], first: int | None) -> list[Tensor]:
    """Rows of several tensors, fp32, and of those that a tensor lacks (-1) what makes up for them.

    Args:
        first: the tensor whose row that is, where it has one; else it is the mean of all that have one, or zero.
    """
    has = [row >= 0 for row in rows]
    found = [tensor[row.clamp(min=0)].float() for tensor, row in zip(tensors, rows, strict=True)]
    if all(bool(there.all()) for there in has):
        return found
    fill = torch.zeros_like(found[0])
    for part, there in zip(found, has, strict=True):
        part[~there] = 0
        fill += part
    fill /= torch.stack(has).sum(0).clamp(min=1).view(-1, *[1] * (fill.ndim - 1))
    if first is not None:
        fill[has[first]] = found[first][has[first]]
    for part, there in zip(found, has, strict=True):
        part[~there] = fill[~there]
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
    rows, spare = {}, {}
    for reference, tokens in known.items():
        rows[reference] = _placed(size, {place: tokens.get(token, -1) for token, place in out.items()})
        num_rows, taken = _num_rows(plan, jobs, reference), {*out.values(), *tokens.values()}
        spare[reference] = _placed(size, {i: i for i in range(min(size, num_rows)) if i not in taken})
    files = {TOKENIZER: tokenizers[plan.main].with_tokens(new)} if new else {}
    return Vocabulary(size, rows, spare, plan.config.base, files)


def _placed(size: int, numbers: Mapping[int, int]) -> Tensor:
    """-1, but for ``numbers`` at their places."""
    found = torch.full((size,), -1, dtype=torch.int64)
    found[torch.tensor([*numbers], dtype=torch.int64)] = torch.tensor([*numbers.values()], dtype=torch.int64)
    return found


class _Tokenizer:
    """A ``tokenizer.json``."""

    def __init__(self, model: Model) -> None:
        folder = model.folder or (model.base.folder if model.base else None)
        self.path = (folder or Path()) / TOKENIZER
        if folder is None or not self.path.is_file():
            raise DeltaError(
                f"{model.called} has no {TOKENIZER}, by which vocabularies are aligned; save its tokenizer beside it "
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
