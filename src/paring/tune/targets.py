"""Which layers are sliced, what is the head, and which block of the network each layer stands in.

Everything here reads the model and changes nothing; whatever does not fit is refused by name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import nn

from paring.patterns import expression
from paring.tune.config import SliceConfig
from paring.tune.kinds import EMBEDDING, SLICEABLE, AnyLayer, FusedExperts, Kind, fused_weights, kind_of
from paring.tune.slices import Matrix


@dataclass(frozen=True)
class Layer:
    """A sliced layer; ``sharing`` are the other modules that hold the same weight (tied weights)."""

    name: str
    module: AnyLayer
    kind: Kind
    matrix: Matrix
    sharing: tuple[tuple[str, nn.Module, Kind], ...] = ()


@dataclass(frozen=True)
class Selection:
    """What a configuration means on a model.

    Attributes:
        layers: the sliced layers, in the order of the model's modules.
        whole: names of modules trained whole beside the slices.
        found: ``whole`` was found, not asked for.
        notes: what was left out though it looks like a layer, for the line that is printed.
    """

    layers: tuple[Layer, ...]
    whole: tuple[str, ...]
    found: bool
    notes: tuple[str, ...]


def select(model: nn.Module, config: SliceConfig) -> Selection:
    """The layers that ``config`` slices and the modules it trains whole.

    Raises:
        ValueError: a pattern matches nothing, or nothing that can be sliced; a weight is quantised or without data;
            no layer is left.
    """
    real = {name: m for name, m in model.named_modules() if name}
    modules = _with_fused_weights(real)
    head, task_head = _head(model, real)
    whole = _matches(config.train_also, real, "train_also") if config.train_also is not None else task_head
    whole = tuple(n for n in whole if not any(_inside(n, w) for w in whole if w != n))
    for name in whole:
        if not any(True for _ in modules[name].parameters()):
            raise ValueError(f"train_also: '{name}' ({type(modules[name]).__name__}) has no parameters to train")
    excluded = set(_matches(config.exclude, modules, "exclude"))
    notes: list[str] = []
    if config.targets is None:
        left_out = (*whole, *head) if config.train_also is None or _is_hugging_face(model) else whole
        names = [n for n, m in modules.items() if kind_of(m)]
        _refuse_none(names, model, f"it has none of {SLICEABLE}")
        names = [n for n in names if not any(_inside(n, w) for w in left_out)]
        _refuse_none(names, model, f"train_also and the output head take all of them: {', '.join(left_out)}; name targets")
        names = [n for n in names if not any(_inside(n, e) for e in excluded)]
        _refuse_none(names, model, f"exclude is {config.exclude!r}, which takes all of them")
        for name in names:
            check_weight(name, modules[name])
        names, more = _first_of_shared(names, modules)
        _refuse_none(names, model, f"{'; '.join(more)}; name layers in targets")
        notes += more + _unsliceable_notes(modules)
        if head and not whole:
            notes.append(f"output head left alone: {', '.join(head)}")
    else:
        names = _sliceable_matches(config.targets, modules)
        both = [n for n in names if any(_inside(n, w) for w in whole)]
        if both and config.train_also is not None:
            raise ValueError(f"layer '{both[0]}' is in both targets and train_also; name it in one of them")
        whole = tuple(w for w in whole if not any(_inside(n, w) for n in names))
    names = [n for n in names if not any(_inside(n, e) for e in excluded)]
    _refuse_none(names, model, f"exclude is {config.exclude!r}, which takes all of targets, {config.targets!r}")
    block, count = _blocks(modules)
    wanted = _wanted_blocks(config.layers, count)
    there = sorted({block[n] for n in names})
    names = [n for n in names if block[n] in wanted]
    _refuse_none(names, model, f"layers is {config.layers!r}, of {count} block(s); what could be sliced stands in {there}")
    layers = _layers(names, modules, block)
    _refuse_trained_twice(layers, whole, modules, config.bias)
    return Selection(layers, whole, config.train_also is None, tuple(notes))


def _refuse_none(names: list[str], model: nn.Module, why: str) -> None:
    if not names:
        raise ValueError(f"no layer to slice is left in {type(model).__name__}: {why}")


def _refuse_trained_twice(layers: tuple[Layer, ...], whole: tuple[str, ...], modules: dict[str, nn.Module], bias: bool) -> None:
    sliced = {id(layer.module.weight): (layer.name, "weight") for layer in layers}
    for layer in layers if bias else ():
        users = [layer.module, *(m for _, m, kind in layer.sharing if kind is not EMBEDDING)]
        for parameter in {id(m.bias): m.bias for m in users if m.bias is not None}.values():
            if id(parameter) in sliced:
                raise ValueError(
                    f"layers '{sliced[id(parameter)][0]}' and '{layer.name}' share a bias, but not their weight, so that its "
                    "entries would be trained twice; exclude one of them, or leave bias at False"
                )
            sliced[id(parameter)] = layer.name, "bias"
    for name in whole:
        for parameter in modules[name].parameters():
            if id(parameter) in sliced:
                layer_name, what = sliced[id(parameter)]
                raise ValueError(
                    f"layer '{layer_name}' is sliced and shares its {what} with '{name}', which is trained whole; "
                    "exclude one of them"
                )


def _layers(names: list[str], modules: dict[str, nn.Module], block: dict[str, int]) -> tuple[Layer, ...]:
    holders = _holders(modules)
    layers, seen = [], set()
    for name in names:
        module = modules[name]
        kind = kind_of(module)
        assert kind is not None
        check_weight(name, module)
        if id(module.weight) in seen:
            continue
        if isinstance(module, FusedExperts):
            _check_implementation(name, module)
        seen.add(id(module.weight))
        sharing = tuple(
            (other, modules[other], _kind_of_sharer(name, other, modules[other]))
            for other in holders[id(module.weight)]
            if other != name
        )
        layers.append(Layer(name, module, kind, Matrix(*kind.extents(module), block[name]), sharing))
    return tuple(layers)


def check_weight(name: str, module: AnyLayer) -> None:
    """That a layer's weight can be trained.

    Raises:
        ValueError: it is quantised, computed from other tensors, without extent or data, or a tensor subclass.
    """
    weight = module.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"layer '{name}' cannot be sliced: its weight has no extent yet; run one batch first")
    if isinstance(weight, torch.Tensor) and module._parameters.get("weight") is not weight:
        raise ValueError(
            f"layer '{name}' cannot be sliced: its weight is computed from others (parametrized or pruned); "
            "make it a plain weight, or exclude the layer"
        )
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        got = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ValueError(
            f"layer '{name}' cannot be sliced: its weight is {got} (quantised); expected float32, float64, bfloat16 "
            "or float16: load the model unquantised, or exclude the layer"
        )
    if weight.is_meta:
        raise ValueError(f"layer '{name}' cannot be sliced: its weight is on the meta device, without data; load it first")
    if type(weight.data) is not torch.Tensor:
        raise ValueError(f"layer '{name}' cannot be sliced: its weight is a {type(weight.data).__name__}, not a plain tensor")


def _with_fused_weights(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules, and after each experts module its fused weights, as layers under the weights' names."""
    out: dict[str, nn.Module] = {}
    for name, module in modules.items():
        out[name] = module
        out |= {f"{name}.{attribute}": FusedExperts(module, attribute) for attribute in fused_weights(module)}
    return out


def _check_implementation(name: str, module: FusedExperts) -> None:
    """That the experts' products can be watched (see experts)."""
    used = getattr(getattr(module.owner, "config", None), "_experts_implementation", None)
    if used not in (None, "eager", "grouped_mm"):
        raise ValueError(
            f"layer '{name}' cannot be sliced: its experts run by {used!r}, which copies or hides their weights; expected "
            "'eager' or 'grouped_mm': model.set_experts_implementation('grouped_mm')"
        )


def _kind_of_sharer(name: str, other: str, module: AnyLayer) -> Kind:
    kind = kind_of(module)
    if kind is not None:
        return kind
    if type(module) is nn.Embedding and module.max_norm is None and not module.sparse and not module.scale_grad_by_freq:
        return EMBEDDING
    raise ValueError(
        f"layer '{name}' cannot be sliced: it shares its weight with '{other}' ({type(module).__name__}), whose gradient "
        "could not be made; exclude the layer"
    )


def _holders(modules: dict[str, nn.Module]) -> dict[int, list[str]]:
    """Which modules hold each parameter, by identity."""
    holders: dict[int, list[str]] = {}
    for name, module in modules.items():
        fused = {
            id(module._parameters[attribute]) for attribute in fused_weights(module)
        }  # their entries of their own hold them
        for parameter in module.parameters(recurse=False):
            if id(parameter) in fused:
                continue
            holders.setdefault(id(parameter), []).append(name)
    return holders


def _first_of_shared(names: list[str], modules: dict[str, nn.Module]) -> tuple[list[str], list[str]]:
    """Layers found by default, without those tied to the head or to anything that is no layer of the backbone."""
    holders = _holders(modules)
    kept, notes = [], []
    for name in names:
        tied = [o for o in holders[id(modules[name].weight)] if o != name and o not in names]
        if tied:
            notes.append(f"{name} left alone: tied to {tied[0]}")
        else:
            kept.append(name)
    return kept, notes


def _unsliceable_notes(modules: dict[str, nn.Module]) -> list[str]:
    """Linear layers that are none of ours; quantised ones are refused, since skipping them would skip the model."""
    notes = []
    for name, module in modules.items():
        quantised = ".quantized" in type(module).__module__ or (
            isinstance(module, nn.Linear) and not getattr(module.weight, "is_floating_point", lambda: False)()
        )
        if quantised and hasattr(module, "weight"):
            check_weight(name, module)
        if isinstance(module, nn.Linear) and kind_of(module) is None:
            notes.append(f"{name} left alone: a {type(module).__name__} runs no forward of nn.Linear's")
    return notes


# The head.


def _is_hugging_face(model: nn.Module) -> bool:
    return hasattr(model, "base_model_prefix") and hasattr(model, "get_output_embeddings")


def _head(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(modules that are the output head, those of them that are a task's own head and trained whole by default).

    Hugging Face: everything outside the base model is head; what holds the output embeddings was pretrained, the rest
    (``classifier``, ``score``, ``qa_outputs``) belongs to the task. Elsewhere: the last layer that could be sliced.
    """
    if not _is_hugging_face(model):
        last = [n for n, m in modules.items() if kind_of(m)][-1:]
        return tuple(last), ()
    output = model.get_output_embeddings()  # type: ignore[operator]
    base = getattr(model, str(model.base_model_prefix), model)
    outside = []
    if base is not model:
        outside = [n for n, m in model.named_children() if m is not base and any(True for _ in m.parameters())]
    pretrained = [n for n in outside if output is not None and any(m is output for m in modules[n].modules())]
    if output is not None and not pretrained:
        pretrained = [n for n, m in modules.items() if m is output]
    return tuple(dict.fromkeys((*outside, *pretrained))), tuple(n for n in outside if n not in pretrained)


# Patterns.


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _match(pattern: str, modules: dict[str, nn.Module], setting: str) -> list[str]:
    try:
        wanted = expression(pattern)
    except re.error as error:
        raise ValueError(f"{setting}: {pattern!r} is no regular expression: {error}") from None
    found = [n for n in modules if wanted.fullmatch(n)]
    if not found:
        raise ValueError(f"{setting}: {pattern!r} matches no module of the model{_nearest(pattern, modules)}")
    return found


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """The closest names, with block numbers shown once."""
    shapes = {re.sub(r"\.\d+(?=\.|$)", ".*", n): n for n in names}
    bare = re.sub(r"\.\d+(?=\.|$)", ".*", pattern)
    suffixes = {".".join(s.split(".")[i:]): s for s in shapes for i in range(s.count(".") + 1)}
    close = list(dict.fromkeys(suffixes[c] for c in get_close_matches(bare, suffixes, n=5, cutoff=0.5)))
    return (
        f"; the nearest are {', '.join(repr(c) for c in close[:3])}"
        if close
        else f"; it has, e.g., {', '.join(list(shapes)[-3:])}"
    )


def _matches(patterns: Iterable[str], modules: dict[str, nn.Module], setting: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for p in patterns for n in _match(p, modules, setting)))


def _sliceable_matches(patterns: Iterable[str], modules: dict[str, nn.Module]) -> list[str]:
    """A pattern with wildcards takes the sliceable ones of what it matches; a plain name must be sliceable itself."""
    chosen = set()
    for pattern in patterns:
        found = _match(pattern, modules, "targets")
        good = [n for n in found if kind_of(modules[n])]
        bad = next((n for n in found if not kind_of(modules[n])), None)
        plain = not pattern.startswith("re:") and not set("*?") & set(pattern)
        if bad is not None and (plain or not good):
            if isinstance(modules[bad], nn.Linear) and hasattr(modules[bad], "weight"):
                check_weight(bad, modules[bad])
            raise ValueError(
                f"targets: {pattern!r} matches '{bad}', a {type(modules[bad]).__name__}, which cannot be sliced; "
                f"sliceable are {SLICEABLE}"
            )
        chosen.update(good)
    return [n for n in modules if n in chosen]


# Blocks.


def _blocks(modules: dict[str, nn.Module]) -> tuple[dict[str, int], int]:
    """The block of every module, and how many blocks there are.

    A block is an entry of an outermost numbered container (``encoder.layer.3``) in which some layer can be sliced (the
    activations of an ``nn.Sequential`` are none); several containers follow each other in the model's order (an
    encoder's, then a decoder's).
    """
    entries = {name: _entry(name) for name in modules}
    holding = {entries[name] for name, module in modules.items() if kind_of(module)}
    keys: dict[str, int] = {}
    block: dict[str, int] = {}
    for name, entry in entries.items():
        if entry is not None and entry in holding:
            block[name] = keys.setdefault(entry, len(keys))
        else:
            block[name] = max(len(keys) - 1, 0)
    return block, max(len(keys), 1)


def _entry(name: str) -> str | None:
    """The entry of an outermost numbered container that a module is, or stands in."""
    parts = name.split(".")
    digit = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if digit is None else ".".join(parts[: digit + 1])


def _wanted_blocks(layers: str | tuple[int, ...] | None, count: int) -> set[int]:
    if layers is None:
        return set(range(count))
    if isinstance(layers, str):
        side, _, number = layers.partition(":")
        if int(number) > count:
            raise ValueError(f"layers is {layers!r}; the model has {count} block(s)")
        return set(range(count - int(number), count)) if side == "upper" else set(range(int(number)))
    for i in layers:
        if not -count <= i < count:
            raise ValueError(f"layers: there is no block {i}; the model has {count} block(s), numbered from 0")
    return {i % count for i in layers}
