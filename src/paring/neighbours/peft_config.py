"""What ``adapter_config.json`` of a LoRA adapter says, and what in it a difference of weights cannot say.

A setting that is not listed here must be unset: what this program does not know is never skipped.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring.delta.errors import DeltaError
from paring.neighbours.layers import read_json

# How it was trained, or where its weights lie, which their names in the file say too.
_WITHOUT_EFFECT = {
    "alora_invocation_string",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
}
_USED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"}
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MERGED = "merge it with PEFT (merge_and_unload) and take `paring diff` of the result"


@dataclass(frozen=True)
class LoraSettings:
    """The part of the configuration that says what the factors mean.

    Attributes:
        rank, alpha: where no pattern says otherwise.
        rank_pattern, alpha_pattern: regular expression for the end of a module's name -> its own.
        rslora: scale alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732).
        transposed: the weights are [in, out]; PEFT sets it itself by the kind of module, so it may be wrong for some.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    transposed: bool

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_key(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = self.alpha_pattern.get(_key(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_settings(path: Path) -> LoraSettings:
    """The settings in ``path``, an ``adapter_config.json``.

    Raises:
        DeltaError: it is damaged, of another method than LoRA, or has a setting that no difference of weights can express.
    """
    config = read_json(path)
    method = config.get("peft_type")
    if method != "LORA":
        raise DeltaError(f"{path}: peft_type is {method!r}; only LORA adapters can be taken over as they are; {_MERGED}")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_MOVES_BASE):
        raise DeltaError(
            f"{path}: init_lora_weights is {start!r}, which changes the base's weights, too; save the adapter with "
            "path_initial_model_for_weight_conversion"
        )
    for key, value in config.items():
        if value and key not in _WITHOUT_EFFECT | _USED:
            shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
            raise DeltaError(f"{path}: {key} is {shown}, which a difference of weights cannot express; {_MERGED}")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha", 8)
    ranks, alphas = (config.get(k) or {} for k in ("rank_pattern", "alpha_pattern"))
    if not (_is_rank(rank) and _is_number(alpha) and isinstance(ranks, dict) and isinstance(alphas, dict)):
        raise DeltaError(
            f"{path}: r is {rank!r}, lora_alpha is {alpha!r}; expected a whole number above 0, a number, and patterns"
        )
    for pattern, good, what in ((ranks, _is_rank, "rank_pattern"), (alphas, _is_number, "alpha_pattern")):
        for key, value in pattern.items():
            try:
                re.compile(key)
            except re.error as error:
                raise DeltaError(f"{path}: {what} has {key!r}, no regular expression: {error}") from None
            if not good(value):
                raise DeltaError(f"{path}: {what} is {value!r} for {key!r}; expected a number")
    flags = (bool(config.get(k)) for k in ("use_rslora", "fan_in_fan_out"))
    return LoraSettings(rank, float(alpha), ranks, alphas, *flags)


def plain_facts(settings: LoraSettings) -> dict[str, Any]:
    """The settings as they travel with a delta."""
    facts: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha}
    if settings.rank_pattern:
        facts["rank_pattern"] = dict(settings.rank_pattern)
    if settings.alpha_pattern:
        facts["alpha_pattern"] = dict(settings.alpha_pattern)
    return facts | ({"use_rslora": True} if settings.rslora else {})


def _key(pattern: Mapping[str, Any], module: str) -> str:
    """The first key that the end of a module's name matches, as PEFT looks it up; else the name."""
    return next((k for k in pattern if re.match(rf"(.*\.)?({k})$", module)), module)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
