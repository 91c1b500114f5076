"""Small real models, and how tests look at them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers are as many as cores: more threads would only wait for one another


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test writes into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def bert(labels: int = 3, **changes: object) -> nn.Module:
    """A BERT classifier of 3 blocks with dropout off, whose extents (24, 40) are not multiples of the ranks used."""
    from transformers import BertConfig, BertForSequenceClassification

    settings: dict[str, object] = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": labels,
    }
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**(settings | changes)))


def tokens(batch: int = 6, length: int = 7, seed: int = 0, labels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 50, (batch, length), generator=generator),
        "labels": torch.randint(0, labels, (batch,), generator=generator),
    }


def convnet() -> nn.Module:
    """Convolutions plain, strided, padded, dilated, grouped, depthwise; batch norm; in-place ReLU; a linear head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, padding="valid"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 2, dilation=2, padding=1, padding_mode="reflect"),
        nn.Flatten(),
        nn.LazyLinear(10),
        nn.ReLU(inplace=True),
        nn.Linear(10, 3),
    )


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].view(-1).view(torch.uint8), b[name].view(-1).view(torch.uint8)), name


def train(
    session: object,
    run: Callable[[int], Tensor],
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    first: int = 0,
) -> torch.optim.Optimizer:
    """The bare loop of the README, ``run(i)`` giving the loss of step i."""
    optimizer = optimizer or torch.optim.AdamW(session.parameters(), lr=1e-2)  # type: ignore[attr-defined]
    for i in range(first, first + steps):
        run(i).backward()
        optimizer.step()
        session.step()  # type: ignore[attr-defined]
        optimizer.zero_grad()
    return optimizer
