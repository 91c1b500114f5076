"""Dense differences without their zeros: mask and values lead back, and nothing false is believed."""

import numpy as np
import pytest
import torch

from paring import DeltaError
from paring.delta.change import exact_change
from paring.delta.codec.planes import CHUNK
from paring.delta.codec.zeros import nonzero, with_zeros, without_zeros
from paring.delta.encode import decode, encode
from paring.delta.places import Everywhere, Scattered

WHERE = "'layer.weight'"


def differences(numel: int, keep: float, dtype: torch.dtype = torch.int16) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    d = torch.randint(-3, 4, (numel,), generator=random).to(dtype)
    return d * (torch.rand(numel, generator=random) < keep)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_mask_and_values_lead_back(numel: int, keep: float) -> None:
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        d = differences(numel, keep, dtype)
        mask, kept = without_zeros(d)
        assert torch.equal(kept, d[d != 0])
        assert np.array_equal(np.unpackbits(mask, count=numel, bitorder="little").view(bool), (d != 0).numpy())
        assert torch.equal(with_zeros(mask, kept, numel, WHERE), d)
        assert torch.equal(torch.from_numpy(nonzero(d.numpy())), d.nonzero().view(-1))


@pytest.mark.parametrize(("mask", "num_values"), [([0b111], 2), ([0b111], 4), ([0b1011], 3)])
def test_a_mask_that_keeps_something_else(mask: list[int], num_values: int) -> None:
    with pytest.raises(DeltaError, match=rf"'layer\.weight' is damaged: its mask does not keep {num_values} of its 3 entries"):
        with_zeros(np.array(mask, np.uint8), torch.ones(num_values, dtype=torch.int16), 3, WHERE)


@pytest.mark.parametrize(
    ("keep", "stored", "held"), [(0.1, "mask", Scattered), (0.5, "mask", Everywhere), (1.0, "dense", Everywhere)]
)
def test_a_change_comes_back_as_the_same_difference(keep: float, stored: str, held: type) -> None:
    before = torch.randn(100, 90, generator=torch.Generator().manual_seed(1)).bfloat16().view(-1)
    d = differences(9000, 1.0)
    d = torch.where(torch.rand(9000, generator=torch.Generator().manual_seed(2)) < keep, torch.where(d == 0, 1, d), 0).short()
    after = (before.view(torch.int16) + d).view(torch.bfloat16)
    encoded = encode(exact_change(before, after, Everywhere(9000), torch.Size((100, 90))), "fp32", 0, WHERE)
    change = decode(encoded.entry, encoded.stored, WHERE)
    assert encoded.entry.places == stored and isinstance(change.places, held)
    whole = before.clone()
    change.places.scatter_(whole, change.after(change.places.gather(whole), WHERE))
    assert torch.equal(whole.view(torch.int16), after.view(torch.int16))
