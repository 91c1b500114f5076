"""The model card of an exported adapter: how to load it, and what it lacks of the delta."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from paring.delta.card import base_facts, front_matter
from paring.delta.taskvector import TaskVector

if TYPE_CHECKING:
    from paring.neighbours.peft_export import Exported

_WORST = 20


def adapter_card(vector: TaskVector, exported: "Exported", model_class: str) -> str:
    """README.md of an adapter; ``model_class`` is the class that it was made for."""
    return "\n".join(_lines(vector, exported, model_class)).rstrip() + "\n"


def _lines(vector: TaskVector, exported: "Exported", model_class: str) -> Iterator[str]:
    yield from front_matter(vector, "peft", ("lora", "peft", "paring"))
    yield from (f"# A LoRA adapter of rank {exported.rank} for {model_class}", "")
    yield "The nearest adapter of this rank to a delta, what a fine-tune added to its base: truncated singular value"
    yield f"decomposition, {_percent(exported.total_lost)} of the energy lost."
    yield from ("", "| | |", "|---|---|", *base_facts(vector.base))
    yield f"| weights | {exported.num_bytes:,} bytes |"
    if exported.modules_to_save:
        yield f"| new modules, whole | {', '.join(f'`{m}`' for m in exported.modules_to_save)} |"
    yield from ("", "```python", "from peft import PeftModel", f"from transformers import {model_class}", "")
    yield f'base = {model_class}.from_pretrained("BASE")   # the configuration of the tuned model, the weights of the base'
    yield 'model = PeftModel.from_pretrained(base, "THIS FOLDER")'
    yield from ("```", "")
    if exported.tied:
        yield f"Do not merge it with PEFT: `{exported.tied[0]}` is tied, and `merge_and_unload` would add to it for each of its"
        yield from ("names. `paring apply` writes the merged model.", "")
    yield from ("## What is lost", "")
    if exported.left_out:
        yield from ("Not in this adapter at all:", "")
        yield from (f"- `{name}`: {why}" for name, why in exported.left_out.items())
        yield ""
    worst = sorted(exported.lost.items(), key=lambda item: -item[1])
    yield from ("| tensor | energy lost |", "|---|--:|")
    yield from (f"| `{name}` | {_percent(lost)} |" for name, lost in worst[:_WORST])
    if len(worst) > _WORST:
        yield f"| {len(worst) - _WORST} more | at most {_percent(worst[_WORST][1])} |"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
