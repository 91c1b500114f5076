"""The nearest matrix of a rank, beside a whole singular value decomposition."""

import pytest
import torch

from paring.neighbours.lowrank import nearest


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 7), (7, 40), (90, 80), (80, 90)])
@pytest.mark.parametrize("rank", [1, 3, 200])
def test_nearest_matrix(shape: tuple[int, int], rank: int) -> None:
    """Of full rank, of rank 2 (found by its span alone), with columns of zeros, and zero."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(shape, generator=generator)
    thin = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
    holes = full * (torch.arange(shape[1]) % 3 == 0)
    for matrix in (full, thin, holes, torch.zeros(shape)):
        U, S, V = torch.linalg.svd(matrix.double(), full_matrices=False)
        found = nearest(matrix, rank)
        good = (U[:, :rank] * S[:rank]) @ V[:rank]
        torch.testing.assert_close((found.B @ found.A).double(), good, rtol=1e-4, atol=2e-5)
        assert found.B.shape[1] == found.A.shape[0] <= min(rank, *shape)
        torch.testing.assert_close(found.B.norm(dim=0), found.A.norm(dim=1), rtol=1e-4, atol=1e-5)
        assert found.lost == pytest.approx(float(S[rank:].square().sum() / S.square().sum().clamp(min=1e-30)), abs=1e-9)


def test_what_is_thin_already_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rank 2, or with 5 columns that are not zero, no matrix of the whole's extent is decomposed."""
    sizes: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (sizes.append(len(matrix)), eigh(matrix))[1])
    thin = torch.randn(200, 2) @ torch.randn(2, 300)
    columns = torch.zeros(200, 300)
    columns[:, 7:12] = torch.randn(200, 5)
    assert len(nearest(thin, 4).A) == 2 and sizes == [12]
    assert len(nearest(columns, 8).A) == 5 and sizes == [12, 5]
    assert nearest(torch.randn(200, 300), 4).lost > 0.5 and sizes == [12, 5, 200]
