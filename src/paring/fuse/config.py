"""The configuration of a merge: mergekit's YAML as it is, read strictly.

    merge_method: ties                # the key without which there is nothing
    base_model: org/pretrained        # what the models were tuned from
    models:                           # whole models ...
      - model: org/tuned              # a folder, a file, a name in the hub's cache, a paring delta, a PEFT adapter's folder
        parameters: {weight: 0.5}     # BASE+ADAPTER: that on a base of its own
    slices:                           # ... or runs of layers, one after the other
      - sources:
          - {model: org/tuned, layer_range: [0, 24], parameters: {…}}
        parameters: {…}
        base_model: …
    parameters: {normalize: true}     # for all
    dtype, out_dtype: bfloat16        # of the output (arithmetic is fp32); the second counts more
    tokenizer_source: base            # or union; also written tokenizer: {source: base}
    scope: global                     # paring's own: thresholds over all tensors, not in each (tensor)
    seed: 0                           # paring's own: of methods that draw at random

What mergekit knows and this does not (``modules``, ``chat_template``, tokens of one's own) is an error that names the line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paring.fuse.inputs import FuseError
from paring.fuse.registry import Method, method
from paring.fuse.settings import Settings, read_settings
from paring.fuse.yamlnodes import ConfigError, Value, nearest, parse_yaml, read_yaml

__all__ = ["Config", "ConfigError", "Reference", "Slice", "Source", "parse_config", "read_config"]

_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}
_KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "scope",
    "seed",
)
_UNSUPPORTED = {
    "modules": "fuse the parts of such a model (encoder and decoder) as models of their own",
    "chat_template": "write it into the output's tokenizer_config.json",
    "out_path": "give the output's folder on the command line",
    "name": "it belongs to mergekit-multi: fuse one configuration after the other",
    "metric_method": "it compares models and merges none",
}
_SLICE_UNSUPPORTED = {"residual_weight": "leave it out; mergekit itself takes no notice of it"}
_TOKENIZER_UNSUPPORTED = {
    "tokens": "take tokenizer: {source: union}, which gives every token the embedding of a model that has it",
    "pad_to_multiple_of": "pad the embeddings of the output afterwards (resize_token_embeddings)",
}
_MODEL_UNSUPPORTED = {"override_architecture": "layers are found by the tensors' names, whatever the architecture"}


@dataclass(frozen=True)
class Reference:
    """A model as a configuration names it; equal where the same is meant.

    Attributes:
        model: path or name; adapter: one that is put on it ("": none), a PEFT adapter or a delta.
    """

    model: str
    adapter: str = ""
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else self.model


@dataclass(frozen=True)
class Source:
    """A model, or a run of its layers.

    Attributes:
        layers: first and last + 1, from 0; None: the whole model.
    """

    model: Reference
    layers: tuple[int, int] | None
    parameters: Settings
    line: int


@dataclass(frozen=True)
class Slice:
    """Layers of the output: merged from as many layers of each source."""

    sources: tuple[Source, ...]
    base: Reference | None
    parameters: Settings
    line: int


@dataclass(frozen=True)
class Config:
    """See the module.

    Attributes:
        slices: of whole models (``models``) one, whose sources have no layers.
        tokenizer: "base", "union" or None: as the base's, and vocabularies must agree.
        text: the file as it was; path: where.
    """

    method: Method
    slices: tuple[Slice, ...]
    base: Reference | None
    parameters: Settings
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    tokenizer: str | None
    scope: str
    seed: int
    text: str
    path: Path
    lines: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Whether it merges whole models."""
        return self.slices[0].sources[0].layers is None

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every model that is named, once, the base first."""
        named = [self.base] if self.base else []
        for one in self.slices:
            named += [one.base] if one.base else []
            named += [source.model for source in one.sources]
        return tuple(dict.fromkeys(named))

    def error(self, key: str, message: str) -> ConfigError:
        """An error about a key of the configuration."""
        return self.error_at(self.lines[key], message) if key in self.lines else ConfigError(f"{self.path}: {message}")

    def error_at(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {line}: {message}")


def read_config(path: str | Path) -> Config:
    """The configuration in a file.

    Raises:
        ConfigError: it is no YAML, a key is unknown or unsupported, a value wrong, a key missing; the line is named.
        OSError: it cannot be read.
    """
    return _read(*read_yaml(Path(path)), Path(path))


def parse_config(text: str, path: str | Path) -> Config:
    """As ``read_config``, of a text; ``path`` is where it would lie, for errors."""
    return _read(parse_yaml(text, Path(path)), text, Path(path))


def _read(top: Value, text: str, path: Path) -> Config:
    keys = top.mapping("the configuration", _KEYS, _UNSUPPORTED)
    if "merge_method" not in keys:
        raise top.error("no merge_method; expected one, such as merge_method: ties")
    try:
        how = method(keys["merge_method"].text("merge_method"))
    except FuseError as error:
        raise keys["merge_method"].error(str(error)) from None
    if ("models" in keys) == ("slices" in keys):
        got = "both models and slices" if "models" in keys else "neither models nor slices"
        raise top.error(f"{got}; expected one of them")
    shared = {p.name: p for p in how.parameters}
    slices = _slices(keys["slices"], how) if "slices" in keys else (_models(keys["models"], how),)
    scope = keys["scope"].text("scope") if "scope" in keys else "tensor"
    if scope not in how.scopes:
        raise keys["scope"].error(f"scope is {scope!r}; {how.name} takes {' or '.join(how.scopes)}")
    return Config(
        how,
        slices,
        _reference(keys["base_model"]) if "base_model" in keys else None,
        read_settings(keys["parameters"], "parameters", shared) if "parameters" in keys else {},
        _dtype(keys.get("dtype"), "dtype"),
        _dtype(keys.get("out_dtype"), "out_dtype"),
        _tokenizer(keys),
        scope,
        _seed(keys.get("seed")),
        text,
        path,
        {key: value.line for key, value in keys.items()},
    )


def _models(value: Value, how: Method) -> Slice:
    own = {p.name: p for p in how.parameters if p.per_model}
    sources = tuple(_source(item, own, ("model", "parameters"), "a model") for item in value.items("models"))
    return _checked(Slice(sources, None, {}, value.line), value)


def _slices(value: Value, how: Method) -> tuple[Slice, ...]:
    own, every = {p.name: p for p in how.parameters if p.per_model}, {p.name: p for p in how.parameters}
    found = []
    for item in value.items("slices"):
        keys = item.mapping("a slice", ("sources", "parameters", "base_model"), _SLICE_UNSUPPORTED)
        if "sources" not in keys:
            raise item.error("a slice without sources; expected a list of model and layer_range")
        sources = tuple(
            _source(s, own, ("model", "layer_range", "parameters"), "a source") for s in keys["sources"].items("sources")
        )
        parameters = read_settings(keys["parameters"], "parameters of a slice", every) if "parameters" in keys else {}
        base = _reference(keys["base_model"]) if "base_model" in keys else None
        found.append(_checked(Slice(sources, base, parameters, item.line), item))
        lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers}
        if len(lengths) > 1:
            raise item.error(f"a slice of runs of {' and '.join(map(str, sorted(lengths)))} layers; expected one length")
    if not found:
        raise value.error("slices is empty; expected at least one")
    return tuple(found)


def _checked(one: Slice, value: Value) -> Slice:
    if not one.sources:
        raise value.error("no model; expected at least one")
    seen: set[tuple[Reference, tuple[int, int] | None]] = set()
    for source in one.sources:
        if (source.model, source.layers) in seen:
            what = f"layer_range {list(source.layers)} of {source.model}" if source.layers else f"{source.model}"
            raise ConfigError(f"{value.called}, line {source.line}: {what} comes twice; give it once, with both weights")
        seen.add((source.model, source.layers))
    return one


def _source(value: Value, known: Mapping[str, object], keys: tuple[str, ...], what: str) -> Source:
    found = value.mapping(what, keys)
    if "model" not in found:
        raise value.error(f"{what} without the key 'model'")
    layers = None
    if "layer_range" in keys:
        if "layer_range" not in found:
            raise value.error("a source without layer_range; expected the first layer and the last + 1, such as [0, 24]")
        layers = _layers(found["layer_range"])
    parameters = read_settings(found["parameters"], f"parameters of {what}", known) if "parameters" in found else {}  # type: ignore[arg-type]
    return Source(_reference(found["model"]), layers, parameters, value.line)


def _layers(value: Value) -> tuple[int, int]:
    given = [item.scalar("layer_range") for item in value.items("layer_range")]
    numbers = [n for n in given if isinstance(n, int) and not isinstance(n, bool)]
    if len(given) != 2 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise value.error(f"layer_range is {given}; expected the first layer and the last + 1, such as [0, 24]")
    return numbers[0], numbers[1]


def _reference(value: Value) -> Reference:
    """A path or name; mergekit's long form is {model: {path, revision}, lora: {path, revision}}."""
    if not value.is_mapping:
        return split(value.text("model"), value)
    keys = value.mapping("a model", ("model", "lora", "path", "revision"), _MODEL_UNSUPPORTED)
    if "path" in keys:
        return Reference(_path(value), line=value.line)
    if "model" not in keys:
        raise value.error("a model without path; expected a path or name")
    return Reference(_path(keys["model"]), _path(keys["lora"]) if "lora" in keys else "", value.line)


def _path(value: Value) -> str:
    if not value.is_mapping:
        return value.text("path")
    keys = value.mapping("a model", ("path", "revision"))
    if "path" not in keys:
        raise value.error("a model without path; expected a path or name")
    revision = f"@{keys['revision'].text('revision')}" if "revision" in keys else ""
    return keys["path"].text("path") + revision


def split(text: str, value: Value) -> Reference:
    """``MODEL+ADAPTER``; a path that is there with its plus signs is that path."""
    if "+" not in text or Path(text).expanduser().exists():
        return Reference(text, line=value.line)
    parts = text.split("+")
    both = [("+".join(parts[:i]), "+".join(parts[i:])) for i in range(1, len(parts))]
    there = [pair for pair in both if all(Path(p).expanduser().exists() for p in pair)]
    if len(there) > 1:
        raise value.error(f"{text!r} can be split at more than one plus sign; write {{model: …, lora: …}}")
    if not there and len(both) > 1:
        raise value.error(f"there is no {text}, and no two paths that a plus sign in it joins")
    found = there[0] if there else both[0]
    return Reference(*found, line=value.line)


def _dtype(value: Value | None, key: str) -> torch.dtype | None:
    if value is None:
        return None
    name = value.text(key).removeprefix("torch.")
    if name not in _DTYPES:
        raise value.error(f"{key} is {name!r}; {nearest(name, _DTYPES)}")
    return _DTYPES[name]


def _tokenizer(keys: Mapping[str, Value]) -> str | None:
    if "tokenizer" in keys and "tokenizer_source" in keys:
        raise keys["tokenizer"].error("both tokenizer and tokenizer_source; expected one of them")
    value = keys.get("tokenizer_source")
    if "tokenizer" in keys:
        inner = keys["tokenizer"].mapping("tokenizer", ("source",), _TOKENIZER_UNSUPPORTED)
        if "source" not in inner:
            return "union"
        value = inner["source"]
    if value is None:
        return None
    source = value.text("tokenizer_source")
    if source not in ("base", "union"):
        raise value.error(
            f"tokenizer_source is {source!r}; paring fuse takes base or union (for one model's, name it as base_model)"
        )
    return source


def _seed(value: Value | None) -> int:
    found = 0 if value is None else value.scalar("seed")
    if type(found) is not int or not 0 <= found < 2**63:
        assert value is not None
        raise value.error(f"seed is {found!r}; expected a whole number from 0")
    return found
