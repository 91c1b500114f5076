"""Checkpoints that hold codes in place of weights (GPTQ, bitsandbytes, fp8 with scales): a mean of codes is no model's."""

import re

from paring.delta.errors import DeltaError
from paring.fuse.agree import Catalogue
from paring.fuse.stacks import configs_in

# What quantised layers keep beside a weight: its scales, or the codes under a name of their own.
_BESIDE = re.compile(r"(\.qweight|\.qzeros|_scale_inv|\.weight_scale|\.absmax|\.quant_state\.\w+|\.SCB)$")


def refuse_quantised(catalogue: Catalogue) -> None:
    """DeltaError: a model is quantised; how that shows is named."""
    model = catalogue.model
    said = next((found for one in configs_in(catalogue.config or {}) if (found := one.get("quantization_config"))), None)
    name = next((name for name in model.infos if _BESIDE.search(name)), None)
    if not said and name is None:
        return
    how = said.get("quant_method") if isinstance(said, dict) else None
    shown = f"a quantization_config{f' ({how})' if how else ''} in its configuration" if said else f"the tensor '{name}'"
    raise DeltaError(
        f"{model.called} has {shown}: its tensors are codes, which have no mean; save the model dequantised, or take the one "
        "it was made of"
    )
