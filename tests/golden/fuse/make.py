"""Writes what mergekit makes of small seeded tensors, for ``tests/test_fuse_golden.py``.

    python -m venv mk && mk/bin/pip install torch==2.13.0 mergekit==0.1.5 && mk/bin/python tests/golden/fuse/make.py

It runs in an environment of its own, since mergekit's requirements are not paring's, and uses nothing of paring. Three files:

    inputs.safetensors     SET/MODEL/TENSOR: sets "fp32", "bf16", "small" (differences of 1e-4); models "base", "a", "b", "c"
    expected.safetensors   CASE/TENSOR: merged, fp32; CASE/TENSOR/mask/MODEL: which entries a random method kept, bool
    cases.json             mergekit's and torch's versions; for each case the method, set, parameters, models, arithmetic

bf16 inputs are merged in fp32 (``dtype: float32``), since all of paring's arithmetic is; "native" cases in bf16, as mergekit
does it by default, for the size of what that loses.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mergekit import merge_methods
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
SHAPES = {"matrix": (16, 24), "vector": (40,)}
W = {"a": 0.5, "b": 0.3, "c": 0.4}
NEGATIVE = {"a": 1.0, "b": -0.3, "c": 0.4}
D = {"a": 0.2, "b": 0.5, "c": 0.9}

# Of each: method, models beside the base (or in front: base first), parameters.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("linear", "abc", {"weight": W}),
    ("linear", "abc", {"weight": NEGATIVE, "normalize": False}),
    ("passthrough", "a", {}),
    ("passthrough", "a", {"scale": {"a": 0.3}}),
    ("slerp", "base+a", {"t": 0.3}),
    ("slerp", "base+c", {"t": 0.0}),
    ("slerp", "base+b", {"t": 1.0}),
    ("nuslerp", "ab", {"weight": {"a": 0.4, "b": 0.8}}),
    ("nuslerp", "ab", {"weight": {"a": 0.4, "b": 0.8}, "nuslerp_flatten": False}),
    ("nuslerp", "ab", {"weight": {"a": 0.4, "b": 0.8}, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("nuslerp", "base+ab", {"weight": {"a": 0.4, "b": 0.8}}),
    ("nuslerp", "base+ab", {"weight": {"a": 0.4, "b": 0.8}, "nuslerp_flatten": False}),
    ("nuslerp", "base+ab", {"weight": {"a": 0.4, "b": 0.8}, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", "abc", {"weight": W}),
    ("multislerp", "abc", {"weight": W, "normalize_weights": False}),
    ("multislerp", "base+abc", {"weight": W}),
    ("multislerp", "base+abc", {"weight": W, "eps": 1e-3}),
    ("karcher", "abc", {}),
    ("karcher", "ab", {"max_iter": 2, "tol": 1e-3}),
    ("task_arithmetic", "base+abc", {"weight": W, "lambda": 0.7}),
    ("task_arithmetic", "base+abc", {"weight": NEGATIVE, "normalize": True}),
    ("ties", "base+abc", {"weight": W, "density": D}),
    ("ties", "base+abc", {"weight": NEGATIVE, "density": D, "lambda": 1.3}),
    ("ties", "base+abc", {"weight": W, "density": D, "normalize": False, "rescale": True, "int8_mask": True}),
    ("ties", "base+abc", {"weight": W}),
    ("breadcrumbs", "base+abc", {"weight": W, "density": D, "gamma": 0.05}),
    ("breadcrumbs", "base+abc", {"weight": W, "density": D, "gamma": {"a": 0.01, "b": 0.3, "c": 0.2}, "rescale": True}),
    ("breadcrumbs_ties", "base+abc", {"weight": NEGATIVE, "density": D, "gamma": 0.1, "normalize": True}),
    ("breadcrumbs_ties", "base+abc", {"weight": W, "density": 0.6, "lambda": 0.5}),
    ("dare_linear", "base+abc", {"weight": W, "density": D}),
    ("dare_linear", "base+abc", {"weight": W, "density": D, "rescale": False, "normalize": True}),
    ("dare_ties", "base+abc", {"weight": NEGATIVE, "density": D}),
    ("dare_ties", "base+abc", {"weight": W, "density": 0.4, "normalize": True}),
    ("della", "base+abc", {"weight": W, "density": 0.5, "epsilon": 0.2}),
    ("della", "base+abc", {"weight": NEGATIVE, "density": 0.3, "rescale": False, "lambda": 1.1}),
    ("della_linear", "base+abc", {"weight": W, "density": {"a": 0.4, "b": 0.6, "c": 1.0}}),
    ("sce", "base+abc", {}),
    ("sce", "base+abc", {"select_topk": 0.3}),
    ("sce", "base+abc", {"select_topk": 0.8, "int8_mask": True}),
    ("model_stock", "base+abc", {}),
    ("model_stock", "base+abc", {"filter_wise": True}),
    ("model_stock", "base+ab", {}),
    ("nearswap", "base+a", {"t": 0.02}),
    ("arcee_fusion", "base+b", {}),
]
NATIVE = ("linear", "task_arithmetic", "ties", "slerp", "breadcrumbs", "sce")  # the first case of each


def inputs() -> dict[str, dict[str, dict[str, Tensor]]]:
    """By set, model and tensor. About a fifth of the differences is zero, as after pruning."""
    generator = torch.Generator().manual_seed(20251121)
    sets: dict[str, dict[str, dict[str, Tensor]]] = {"fp32": {}, "bf16": {}, "small": {}}
    for tensor, shape in SHAPES.items():
        base = 0.5 * torch.randn(shape, generator=generator)
        for of in sets.values():
            of.setdefault("base", {})[tensor] = base
        for model, size in (("a", 0.05), ("b", 0.03), ("c", 0.08)):
            difference = size * torch.randn(shape, generator=generator)
            difference[torch.rand(shape, generator=generator) < 0.2] = 0
            for name, of in sets.items():
                of.setdefault(model, {})[tensor] = base + difference * (0.003 if name == "small" else 1)
    return {
        name: {m: {t: x.bfloat16() if name == "bf16" else x for t, x in of.items()} for m, of in s.items()}
        for name, s in sets.items()
    }


def main() -> None:
    given = inputs()
    expected: dict[str, Tensor] = {}
    cases = []
    todo = [(s, *case, None) for s in given for case in CASES]
    todo += [("bf16", *next(c for c in CASES if c[0] == method), "native") for method in NATIVE]
    for number, (name, method, models, parameters, arithmetic) in enumerate(todo):
        of = given[name]
        keys = [*(["base"] if models.startswith("base") else []), *models.rsplit("+", 1)[-1]]
        for tensor in SHAPES:
            masks: list[Tensor] = []
            torch.manual_seed(number)
            with recording(masks):
                merged = merge_methods.merge_tensors(
                    [of[key][tensor] for key in keys],
                    method,
                    parameters=parameters,
                    ids=keys,
                    base_index=0 if keys[0] == "base" else None,
                    dtype=None if arithmetic else torch.float32,
                )
            expected[f"{number}/{tensor}"] = merged.float().contiguous()
            density = parameters.get("density", 1.0)
            random = [k for k in keys[1:] if (density[k] if isinstance(density, dict) else density) < 1]
            for key, mask in zip(random, masks, strict=bool(masks)):
                expected[f"{number}/{tensor}/mask/{key}"] = mask.reshape(SHAPES[tensor]).bool()
        cases.append(
            {"set": name, "method": method, "models": keys, "parameters": parameters, "arithmetic": arithmetic or "fp32"}
        )
    flat = {f"{s}/{m}/{t}": x.clone() for s, of in given.items() for m, tensors in of.items() for t, x in tensors.items()}
    save_file(flat, HERE / "inputs.safetensors")
    save_file(expected, HERE / "expected.safetensors")
    facts = {"mergekit": version("mergekit"), "torch": torch.__version__}
    (HERE / "cases.json").write_text(json.dumps({**facts, "cases": cases}, indent=1) + "\n")


class recording:  # noqa: N801 - a context manager
    """Keeps what ``torch.bernoulli`` draws."""

    def __init__(self, masks: list[Tensor]) -> None:
        self.masks, self.real = masks, torch.bernoulli

    def __enter__(self) -> None:
        def bernoulli(*args: Any, **kwargs: Any) -> Tensor:
            self.masks.append(self.real(*args, **kwargs))
            return self.masks[-1]

        torch.bernoulli = bernoulli

    def __exit__(self, *_: object) -> None:
        torch.bernoulli = self.real


if __name__ == "__main__":
    main()
