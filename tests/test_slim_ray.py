"""NPS with its candidates scored by Ray workers finds what one process finds, and outlives a worker."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paring
from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.search import Progress, SearchSettings
from paring.slim.nps import Nps, Slimmed, prune_nps
from paring.slim.remote import Workers

pytest.importorskip("ray", reason="Ray is not installed (pip install 'paring[ray]')")
pytestmark = pytest.mark.filterwarnings("ignore:::ray")

SETTINGS = SearchSettings(budget=40, seed=1)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.tanh(self.a(x))))


def vector() -> TaskVector:
    """Of which the head is new."""
    base = Net().state_dict()
    generator = torch.Generator().manual_seed(1)
    tuned = {n: t + torch.randn(t.shape, generator=generator) * 0.3 for n, t in base.items()}
    return paring.diff({n: t for n, t in base.items() if not n.startswith("head")}, tuned)


def score(rows: Tensor, wanted: Tensor, model: nn.Module) -> float:
    return float((model(rows) - wanted).square().mean())


def objective() -> Callable[[nn.Module], float]:
    rows = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
    tuned = Net()
    with vector().apply(tuned), torch.no_grad():
        return partial(score, rows, tuned(rows))


def make(seed: int = 0) -> tuple[nn.Module, Callable[[nn.Module], float]]:
    torch.manual_seed(99)
    return Net(seed), objective()


def make_dying(marker: Path) -> tuple[nn.Module, Callable[[nn.Module], float]]:
    """The first worker dies over its fifth candidate."""
    model, plain = make()
    calls = [0]

    def dying(model: nn.Module) -> float:
        calls[0] += 1
        if calls[0] == 5 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(model)

    return model, dying


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone() -> Slimmed:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return prune_nps(vector(), Net(), objective(), 0.2, Nps("magnitude", 4), SETTINGS)
    finally:
        torch.set_num_threads(before)


def test_two_workers_find_what_one_process_finds(cluster: None, alone: Slimmed) -> None:
    model, pids = Net(), set()

    def report(progress: Progress) -> None:
        pids.add(progress.latest.worker["pid"])

    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = prune_nps(vector(), model, objective(), 0.2, Nps("magnitude", 4), SETTINGS, report=report, workers=Workers(make, 2))
    assert len(pids) == 2 and os.getpid() not in pids
    assert found.weights == alone.weights and found.result.score == alone.result.score
    assert all(torch.equal(found.vector[n], alone.vector[n]) for n in alone.vector)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with found.vector.apply(model), torch.no_grad():
        assert objective()(model) == pytest.approx(found.result.score, rel=1e-5)
    assert math.isfinite(found.result.score) and found.result.score < max(s or 0 for s in found.result.start_scores.values())


def test_a_worker_killed_amid_the_search(cluster: None, alone: Slimmed, tmp_path: Path) -> None:
    workers = Workers(partial(make_dying, tmp_path / "died"), 2)
    found = prune_nps(
        vector(), Net(), objective(), 0.2, Nps("magnitude", 4), SETTINGS, workers=workers, folder=tmp_path / "search"
    )
    assert (tmp_path / "died").exists()
    assert found.weights == alone.weights
    assert len((tmp_path / "search" / "search.jsonl").read_text().splitlines()) == 41


def test_a_worker_with_another_base_is_refused(cluster: None) -> None:
    with pytest.raises(DeltaError, match="is not the base of this delta"):
        prune_nps(vector(), Net(), objective(), 0.2, Nps("magnitude", 4), SETTINGS, workers=Workers(partial(make, 5), 1))
