"""Which part of a PEFT LoRA adapter each tensor of a task vector goes into, or why it cannot; from names and shapes alone.

weight of a linear layer, a Conv1D, an embedding    low-rank factors on that module (on each, where it is tied)
bias of a linear layer or a Conv1D                  ``lora_bias``, where PEFT allows it: every module with factors is one
                                                    that has a bias
all tensors of a new module (a head)                ``modules_to_save``, whole
else (layer norms, buffers, convolutions, ...)      nowhere
"""

from collections.abc import Mapping
from dataclasses import dataclass

from paring.delta.align import align
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.taskvector import TaskVector
from paring.neighbours.layers import Layers

_TASKS = {
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", ()),
}


@dataclass(frozen=True)
class Plan:
    """See above; tensors by their names in the task vector, modules by theirs in the model.

    Attributes:
        weights: tensor -> the modules that hold it.
        biases: tensor -> its module.
        saved: tensor -> its name in the model.
        modules_to_save: those that hold the saved tensors.
        left_out: tensor -> why it cannot be carried.
        task_type: PEFT's word for what the model is for; None where there is none, or PEFT would look for a head in the
            adapter that is not in it.
    """

    weights: Mapping[str, tuple[str, ...]]
    biases: Mapping[str, str]
    saved: Mapping[str, str]
    modules_to_save: tuple[str, ...]
    left_out: Mapping[str, str]
    task_type: str | None


def plan(vector: TaskVector, layers: Layers) -> Plan:
    """Where each tensor goes.

    Raises:
        DeltaError: the model has no such tensor, or one of another shape.
    """
    names = _located(vector, layers)
    weights: dict[str, tuple[str, ...]] = {}
    biases: dict[str, str] = {}
    left_out: dict[str, str] = {}
    heads = _wholly_new(layers, {names[n] for n in vector.new})
    saved = {n: names[n] for n in vector.new if any(names[n].startswith(m + ".") for m in heads)}
    for name in vector.names:
        whole, part = split_part(name)
        there = names.get(name, names.get(whole, name))
        kind, shape = layers.kind(there), vector.changes[name].shape
        if part >= 0 and name not in names:
            left_out[name] = "one matrix of a fused tensor"
        elif there.endswith(".weight") and kind != "other" and len(shape) == 2:
            aliases = layers.names_of(there)
            if all(layers.kind(a) != "other" for a in aliases):
                weights[name] = tuple(a.rpartition(".")[0] for a in aliases)
            else:
                left_out[name] = f"tied to what no LoRA is for ({', '.join(aliases)})"
        elif there.endswith(".bias") and kind in ("linear", "conv1d") and len(layers.names_of(there)) == 1:
            biases[name] = there.removesuffix(".bias")
        else:
            left_out[name] = "no weight of a linear layer or an embedding"
    bare = sorted(m for group in weights.values() for m in group if f"{m}.bias" not in layers.tensors)
    if biases and bare:
        left_out |= dict.fromkeys(biases, f"a bias; PEFT takes them only where every module has one, and '{bare[0]}' has none")
        biases = {}
    left_out |= {
        n: "new, in a module that the base has, or with a name that another's ends in" for n in vector.new if n not in saved
    }
    return Plan(weights, biases, saved, heads, left_out, _task(layers, heads))


def exact_pattern(module: str, layers: Layers) -> bool:
    """Whether the name of a module, which PEFT also takes for the end of a name, means it alone."""
    return not any(m.endswith("." + module) for m in layers.modules)


def _located(vector: TaskVector, layers: Layers) -> dict[str, str]:
    """The names in the model of the whole tensors that the task vector names."""
    wanted = {n: n if n in layers.tensors else split_part(n)[0] for n in vector.changes}
    found = align(dict.fromkeys(wanted.values()), layers.tensors)
    for name, whole in wanted.items():
        if whole not in found:
            raise DeltaError(
                f"{layers.called} has no tensor '{whole}', which the delta changes; give the configuration of the tuned model "
                "(--config: the folder with its config.json)"
            )
        expected, shape = layers.tensors[found[whole]], vector.changes[name].shape
        if (expected if name == whole else expected[1:]) != shape:
            raise DeltaError(
                f"{layers.called}: '{whole}' is {list(expected)}, the delta's '{name}' {list(shape)}; give the configuration "
                "of the tuned model (--config: the folder with its config.json)"
            )
    return {name: found[whole] for name, whole in wanted.items() if name == whole}


def _wholly_new(layers: Layers, new: set[str]) -> tuple[str, ...]:
    """The outermost modules all of whose tensors are new, without those whose name PEFT would take for another's, too."""
    heads: list[str] = []
    for module in layers.modules:  # parents come first
        inside = layers.inside(module)
        if inside and inside <= new and not any(module.startswith(h + ".") for h in heads):
            heads.append(module)
    matched = {h: {m for m in layers.modules if m.endswith(h)} for h in heads}
    return tuple(h for h in heads if matched[h] <= set(heads))


def _task(layers: Layers, heads: tuple[str, ...]) -> str | None:
    if not layers.takes_ids:  # PEFT's classes for tasks pass input_ids on, given or not
        return None
    for ending, (task, own) in _TASKS.items():
        if layers.called.endswith(ending) and (task != "SEQ_2_SEQ_LM" or layers.encoder_decoder):
            looked_for = {m for m in layers.modules if m.endswith(own)} if own else set()
            inside = {m for m in looked_for if any(m.startswith(h + ".") for h in heads)}
            return task if looked_for - inside <= set(heads) else None
    return None
