"""A base whose tensors have other names on disk than in memory: known by their content, never guessed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import paring
from paring import DeltaError


def in_memory() -> dict[str, Tensor]:
    """Two layers; a bias of each is zero, as those of keys stay."""
    generator = torch.Generator().manual_seed(0)
    out = {f"layers.{i}.{n}": torch.randn(4, 4, generator=generator) for i in (0, 1) for n in ("q_proj", "k_proj")}
    return {**out, "layers.0.k_bias": torch.zeros(4), "layers.1.k_bias": torch.zeros(4), "norm": torch.randn(4)}


def on_disk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a library stores them that renames when it loads."""
    for ours, theirs in (("layers.", "encoder.layer."), ("q_proj", "query"), ("k_proj", "key"), ("k_bias", "key_bias")):
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    return state


def test_a_delta_of_names_in_memory_on_a_checkpoint_of_others(tmp_path: Path) -> None:
    base = in_memory()
    tuned = {name: tensor + i for i, (name, tensor) in enumerate(base.items())}
    save_file(on_disk(base), tmp_path / "base.safetensors")
    vector = paring.diff(base, tuned)
    paring.apply_to_checkpoint(tmp_path / "base.safetensors", vector, tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    assert out.keys() in (on_disk(tuned).keys(), tuned.keys())
    for name, tensor in tuned.items():  # under either name
        (theirs,) = on_disk({name: tensor})
        assert torch.equal(out[theirs] if theirs in out else out[name], tensor), name


def test_what_stays_in_doubt_is_refused(tmp_path: Path) -> None:
    base = in_memory() | {"layers.0.q_bias": torch.zeros(4)}  # as zero as another of its layer
    other = {name.replace("k_bias", "b1").replace("q_bias", "b2"): tensor for name, tensor in base.items()}
    save_file(other, tmp_path / "base.safetensors")
    vector = paring.diff(base, {name: tensor + 1 for name, tensor in base.items()})
    with pytest.raises(DeltaError, match=r"is not the base of this delta: it has no tensor 'layers\.0\.k_bias'"):
        paring.apply_to_checkpoint(tmp_path / "base.safetensors", vector, tmp_path / "out.safetensors")
    save_file({**on_disk(in_memory()), "norm": torch.ones(4)}, tmp_path / "other.safetensors")
    with pytest.raises(DeltaError, match="is not the base of this delta"):
        paring.apply_to_checkpoint(tmp_path / "other.safetensors", vector, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
