"""A small vision transformer, pretrained on upright digits: about 0.45 M weights, half a minute on two cores.

Kept in the cache, so that only the first call trains. Same seed, same weights, on one kind of machine.
"""

import json
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from paring.tasks.digits.cache import load_or_make
from paring.tasks.digits.data import NUM_LABELS, SPLIT_SIZES, load_splits
from paring.tasks.digits.training import fit, one_thread
from paring.tasks.extras import require

_ARCHITECTURE: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": NUM_LABELS,
}
PRETRAINING_STEPS = 1200
_TRAINING: dict[str, Any] = {"rate": 1e-3, "batch_size": 32, "warmup_steps": 50, "weight_decay": 0.1}
_NOISE, _MOVED = 0.4, 0.2
_REVISION = 2  # to be raised when the code of the recipe changes: kept weights of an older one are then not used


def pretrained(seed: int = 0, *, steps: int = PRETRAINING_STEPS) -> nn.Module:
    """The model, trained on the upright images of the train split, in evaluation mode; a new object every call.

    Args:
        seed: of the first weights and of the training.
        steps: optimizer steps of the pretraining.

    Returns:
        A ``transformers.ViTForImageClassification``; ``model(pixel_values=images).logits`` is ``[n, 10]``.

    Raises:
        ImportError: transformers or scikit-learn is missing.
    """

    def train(model: nn.Module) -> None:
        train_split = load_splits()["train"]
        with one_thread():
            fit(model, model.parameters(), train_split, steps=steps, seed=seed, augment=_worn, **_TRAINING)

    model = new_model(seed)
    load_or_make(model, f"digits-vit-{recipe_hash(seed, steps)}.safetensors", train)
    model.zero_grad()
    return model.eval()


def new_model(seed: int) -> nn.Module:
    """The model with random weights; the global random state is left as it was."""
    transformers = require("transformers", "the digits task")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(transformers.ViTConfig(**_ARCHITECTURE))


def recipe_hash(seed: int, steps: int) -> str:
    """Names the weights that this recipe makes with the packages installed."""
    recipe = {
        "architecture": _ARCHITECTURE,
        "training": {**_TRAINING, "steps": steps, "noise": _NOISE, "moved": _MOVED, "splits": SPLIT_SIZES},
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn")},
        "revision": _REVISION,
    }
    return blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=8).hexdigest()


def _worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise on every image, and a fifth of them moved by up to one pixel; 900 clean images would be learnt by heart."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 3, (count, 2), generator=generator)
    offsets[torch.rand(count, generator=generator) >= _MOVED] = 1
    rows = (offsets[:, :1] + torch.arange(height))[:, :, None]
    columns = (offsets[:, 1:] + torch.arange(width))[:, None, :]
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    moved = padded[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)
    return moved + _NOISE * torch.randn(images.shape, generator=generator)
