"""Two processes over several moves equal one process with the joined batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from conftest import assert_same_bits, bert, bits, tokens
from paring import SliceConfig, sliced

STEPS = 7


def train(model: torch.nn.Module, wrapped: torch.nn.Module, session, part: slice) -> None:
    optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
    for i in range(STEPS):
        halves = tokens(batch=8, seed=i).items()
        wrapped(**{k: v[part] for k, v in halves}).loss.backward()
        optimizer.step()
        session.step()
        optimizer.zero_grad()


def load(state: dict, settings: dict) -> dict[str, torch.Tensor]:
    model = bert()
    with sliced(model, SliceConfig(**settings), verbose=False) as session:
        session.load_state_dict(state)
        assert session.num_steps == STEPS
    return bits(model)


def worker(rank: int, folder: str, settings: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = bert()
    with sliced(model, SliceConfig(**settings), verbose=True) as session:
        wrapped = DistributedDataParallel(model, find_unused_parameters="layer_window" in settings)
        train(model, wrapped, session, slice(0, 4) if rank == 0 else slice(4, 8))
        torch.save(session.state_dict(), f"{folder}/session{rank}.pt")
    torch.save(bits(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "settings",
    [
        {"modes": ("row", "column"), "bias": True},
        {"modes": ("column",), "order": "random"},
        {"modes": ("row",), "layer_window": 1},
    ],
)
def test_two_processes_equal_one(tmp_path: Path, settings: dict) -> None:
    settings = {"rank": 5, "move_steps": 2} | settings
    mp.spawn(worker, (str(tmp_path), settings), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model = bert()
    start = bits(model)
    with sliced(model, SliceConfig(**settings), verbose=False) as session:
        train(model, model, session, slice(0, 8))
    one = bits(model)
    for name in one:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], one[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(not torch.equal(start[n], one[n]) for n in one) > 10
    states = [torch.load(tmp_path / f"session{rank}.pt", weights_only=True) for rank in (0, 1)]
    for resumed in (load(state, settings) for state in states):  # either process's state is the run's
        assert_same_bits(resumed, first)
