"""What mergekit makes of the same tensors (``tests/golden/fuse/make.py``; its version is in ``cases.json``).

Methods that draw at random are given the entries that mergekit's run kept. Where entries are equal in size mergekit leaves
open which of them are kept (its sort is not stable): those are left out of the comparison, and only those.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paring.fuse.inputs import Inputs
from paring.fuse.registry import method
from paring.fuse.thinned import merge

HERE = Path(__file__).parent / "golden" / "fuse"
GIVEN, EXPECTED = load_file(HERE / "inputs.safetensors"), load_file(HERE / "expected.safetensors")
CASES = json.loads((HERE / "cases.json").read_text())["cases"]
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
RANKED = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")


def named(number):
    case = CASES[number]
    return f"{number}-{case['method']}-{case['set']}-{case['arithmetic']}"


def prepared(number, tensor):
    case = CASES[number]
    how = method(case["method"])
    models = [m for m in case["models"] if m != "base"]
    base = GIVEN[f"{case['set']}/base/{tensor}"] if "base" in case["models"] else None
    own = {p.name for p in how.parameters if p.per_model}
    given = case["parameters"]
    per_model = [{k: v[m] if isinstance(v, dict) else v for k, v in given.items() if k in own} for m in models]
    settings = how.resolve({k: v for k, v in given.items() if k not in own}, per_model, has_base=base is not None)
    tensors = tuple(GIVEN[f"{case['set']}/{m}/{tensor}"] for m in models)
    return how, Inputs(tensor, tensors, base, settings.parameters, settings.per_model, keys=tuple(models))


def undecided(inputs):
    """Entries of the very magnitude (or variance) at which a ranking ends in the midst of equal ones."""
    taus = torch.stack([m.float() - inputs.base.float() for m in inputs.models]).flatten(1)
    out = torch.zeros(inputs.numel).bool()
    for i, row in enumerate([*taus.abs(), taus.var(0, unbiased=False)]):
        if i < len(taus) and "density" in inputs.per_model[i]:
            kept = int(inputs.per_model[i]["density"] * row.numel())
            top = min(int(inputs.per_model[i].get("gamma", 0) * row.numel()), row.numel() - kept)
            ends = [kept + top, top] if kept < row.numel() else []
        else:
            share = inputs.parameters.get("select_topk", 1.0) if i == len(taus) else 1.0
            ends = [int(row.count_nonzero() * share)] if share < 1 else []
        down = row.sort(descending=True).values
        for end in ends:
            if 0 < end < row.numel() and down[end - 1] == down[end] > 0:
                out |= row == down[end]
    return out.view(inputs.shape)


@pytest.mark.parametrize("number", range(len(CASES)), ids=named)
@pytest.mark.parametrize("tensor", ["matrix", "vector"])
def test_against_mergekit(number, tensor):
    case = CASES[number]
    how, inputs = prepared(number, tensor)
    expected = EXPECTED[f"{number}/{tensor}"]
    if case["method"] in RANDOM:
        got = torch.empty(inputs.shape)

        def as_drawn(inputs, i, cuts):
            mask = EXPECTED.get(f"{number}/{tensor}/mask/{inputs.keys[i]}", torch.ones(inputs.shape)).view(-1)
            return lambda piece, start: piece * mask[start : start + piece.numel()]

        merge(inputs, got, as_drawn, (), elect=case["method"] in ("dare_ties", "della"))
    else:
        got = how(inputs)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if case["arithmetic"] == "fp32" else {"rtol": 1 / 32, "atol": 1 / 64}
    if case["method"] == "karcher" and case["set"] == "small":
        tolerance = {"rtol": 0, "atol": 2e-4}  # angles of 1e-4, which mergekit's acos in fp32 cannot tell from zero
    compared = torch.ones(inputs.shape).bool()
    if case["method"] in RANKED:
        compared = ~undecided(inputs)
        assert compared.float().mean() > (0.8 if case["set"] == "bf16" else 0.99)
    torch.testing.assert_close(got[compared], expected[compared], **tolerance)


def test_every_method_of_mergekits_is_there():
    """But for ram and ramplus_tl, which it has had since 0.1.4."""
    assert len({case["method"] for case in CASES}) == 18
