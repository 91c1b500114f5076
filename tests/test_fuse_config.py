"""``paring.fuse.config``: mergekit's YAML as it is, read strictly."""

from pathlib import Path

import pytest
import torch

from paring.fuse.config import Config, ConfigError, Reference, read_config
from paring.fuse.settings import Setting

# mergekit's examples, but for the models' names.
LINEAR = """
models:
  - model: org/first
    parameters:
      weight: 1.0
  - model: org/second
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
"""
STACKED = """
slices:
  - sources:
    - model: org/first
      layer_range: [0, 24]
  - sources:
    - model: org/second
      layer_range: [20, 40]
merge_method: passthrough
dtype: float16
"""
SCALED = """
merge_method: passthrough
models:
  - model: org/first
    parameters:
      scale:
        - filter: self_attn
          value: [0, 0.5, 0.3, 0.7, 1]
        - filter: mlp
          value: [1, 0.5, 0.7, 0.3, 0]
        - value: 0.5 # fallback for rest of tensors
"""


def read(tmp_path: Path, text: str) -> Config:
    (tmp_path / "merge.yml").write_text(text)
    return read_config(tmp_path / "merge.yml")


def test_whole_models(tmp_path: Path) -> None:
    config = read(tmp_path, LINEAR)
    assert config.whole and config.base is None and config.method.name == "linear"
    assert config.dtype == torch.float16 and config.out_dtype is None and config.scope == "tensor" and config.seed == 0
    assert [str(s.model) for s in config.slices[0].sources] == ["org/first", "org/second"]
    assert [s.parameters["weight"].at("any", 0.5) for s in config.slices[0].sources] == [1.0, 0.3]
    assert config.references == (Reference("org/first"), Reference("org/second"))
    assert [r.line for r in config.references] == [3, 6]


def test_runs_of_layers(tmp_path: Path) -> None:
    config = read(tmp_path, STACKED)
    assert not config.whole and [s.sources[0].layers for s in config.slices] == [(0, 24), (20, 40)]


def test_gradients_and_filters(tmp_path: Path) -> None:
    scale = read(tmp_path, SCALED).slices[0].sources[0].parameters["scale"]
    assert [scale.at("model.layers.0.self_attn.q", t / 8) for t in range(9)] == pytest.approx(
        [0, 0.25, 0.5, 0.4, 0.3, 0.5, 0.7, 0.85, 1]
    )
    assert scale.at("model.layers.0.mlp.up", 1.0) == 0 and scale.at("model.norm.weight", 0.3) == 0.5
    steps = read(tmp_path, LINEAR + "parameters: {normalize: [true, false, true]}").parameters["normalize"]
    assert [steps.at("x", t) for t in (0.0, 0.49, 0.5, 0.99, 1.0)] == [True, True, False, False, True]


def test_a_filter_that_does_not_match_leaves_it_to_the_next_place(tmp_path: Path) -> None:
    setting = read(tmp_path, SCALED.replace("- value: 0.5", "- {filter: head, value: 0.5}")).slices[0].sources[0]
    found = setting.parameters["scale"]
    assert isinstance(found, Setting) and found.at("model.norm.weight", 0.0) is None


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    """YAML takes 1e-3 for a text."""
    config = read(tmp_path, LINEAR.replace("weight: 0.3", "weight: [1e-3, 1E-1]"))
    assert config.slices[0].sources[1].parameters["weight"].at("x", 1.0) == 0.1


def test_models_in_mergekits_long_form(tmp_path: Path) -> None:
    long = LINEAR.replace("model: org/first", "model: {model: {path: org/first, revision: v1}, lora: {path: org/lora}}")
    assert read(tmp_path, long).references[0] == Reference("org/first@v1", "org/lora")
    assert read(tmp_path, LINEAR.replace("org/first", "org/first+org/lora")).references[0] == Reference("org/first", "org/lora")


def test_a_plus_sign_in_a_path(tmp_path: Path) -> None:
    both = tmp_path / "c++" / "model"
    both.mkdir(parents=True)
    assert read(tmp_path, LINEAR.replace("org/first", str(both))).references[0] == Reference(str(both))
    (tmp_path / "c++" / "lo+ra").mkdir()
    joined = f"{both}+{tmp_path / 'c++' / 'lo+ra'}"
    assert read(tmp_path, LINEAR.replace("org/first", joined)).references[0] == Reference(
        *[str(both), joined[len(str(both)) + 1 :]]
    )
    with pytest.raises(ConfigError, match=r"line 3: there is no .*c\+\+/gone, and no two paths"):
        read(tmp_path, LINEAR.replace("org/first", f"{tmp_path}/c++/gone"))


def test_anchors_and_an_empty_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 1: the configuration has the unknown key 'x'"):
        read(tmp_path, "x: &x {weight: 0.5}" + LINEAR)
    aliased = LINEAR.replace("parameters:\n      weight: 0.3", "parameters: *p").replace(
        "parameters:\n      weight: 1.0", "parameters: &p\n      weight: 1.0"
    )
    assert read(tmp_path, aliased).slices[0].sources[1].parameters["weight"].at("x", 0) == 1.0
    assert read(tmp_path, LINEAR + "parameters:\n").parameters == {}


def test_keys_that_are_taken_in(tmp_path: Path) -> None:
    """As YAML's merge key has it: one's own hold, of several mappings the first."""

    def weights(*second: str) -> list[float]:
        text = LINEAR.replace("parameters:\n      weight: 1.0", "parameters: &p\n      weight: 1.0")
        text = text.replace("parameters:\n      weight: 0.3", "parameters:\n      " + "\n      ".join(second))
        return [s.parameters["weight"].at("x", 0) for s in read(tmp_path, text).slices[0].sources]  # type: ignore[misc]

    assert weights("<<: *p") == [1.0, 1.0]
    assert weights("<<: *p", "weight: 0.3") == weights("weight: 0.3", "<<: *p") == [1.0, 0.3]
    assert weights("<<: [{weight: 0.2}, *p]") == [1.0, 0.2]
    with pytest.raises(ConfigError, match="has the key 'weight' twice"):
        weights("<<: *p", "weight: 0.3", "weight: 0.4")
    with pytest.raises(ConfigError, match="takes in itself"):
        weights("&q", "<<: *q")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("merge_method: linear", "merge_metod: linear", "line 9: .*unknown key 'merge_metod'; did you mean 'merge_method'"),
        ("merge_method: linear", "merge_method: linaer", "line 9: merge_method is 'linaer'; the nearest is 'linear'"),
        ("merge_method: linear", "", "no merge_method"),
        ("merge_method: linear", "merge_method: [linear]", "line 9: merge_method is a list; expected a single value"),
        ("weight: 0.3", "wieght: 0.3", "line 8: .*unknown key 'wieght'; did you mean 'weight'"),
        ("weight: 0.3", "normalize: true", "line 8: parameters of a model has the unknown key 'normalize'; known are weight"),
        ("weight: 0.3", "weight: heavy", "line 8: weight is 'heavy'; expected a number"),
        ("weight: 0.3", "weight: true", "line 8: weight is True; expected a number"),
        ("weight: 0.3", "weight: .nan", "line 8: weight is nan; expected a number"),
        ("weight: 0.3", "weight: []", "line 8: weight is an empty list"),
        ("weight: 0.3", "weight: [1, {value: 2}]", "line 8: weight is a mapping; expected a single value"),
        ("weight: 0.3", "weight: [{filter: mlp}]", "line 8: weight: a choice without a value"),
        ("weight: 0.3", "weight: [{fliter: mlp, value: 1}]", "line 8: .*unknown key 'fliter'; did you mean 'filter'"),
        ("weight: 0.3", "weight: 0.3\n      weight: 0.4", "line 9: parameters of a model has the key 'weight' twice"),
        ("dtype: float16", "dtype: bloat16", "line 10: dtype is 'bloat16'; did you mean 'bfloat16'"),
        ("dtype: float16", "scope: global", "line 10: scope is 'global'; linear takes tensor"),
        ("dtype: float16", "seed: -1", "line 10: seed is -1; expected a whole number from 0"),
        ("dtype: float16", "chat_template: auto", "line 10: 'chat_template' is not supported by paring fuse: write it into"),
        ("dtype: float16", "modules: {}", "line 10: 'modules' is not supported"),
        ("dtype: float16", "tokenizer: {source: union, tokens: {}}", "line 10: 'tokens' is not supported"),
        ("dtype: float16", "tokenizer_source: org/second", "line 10: tokenizer_source is 'org/second'; .* base or union"),
        ("dtype: float16", "tokenizer_source: base\ntokenizer: {}", "line 11: both tokenizer and tokenizer_source"),
        ("dtype: float16", "slices: []", "both models and slices"),
        ("dtype: float16", "- x", "line 10: no valid YAML"),
        ("dtype: float16", "---\nmodels: []", "line 11: a second document, which mergekit-multi takes"),
        ("org/second", "org/first", "line 6: org/first comes twice"),
        (
            "  - model: org/second\n",
            "  - modle: org/second\n",
            "line 6: a model has the unknown key 'modle'; did you mean 'model'",
        ),
        ("  - model: org/second\n", "  - layer_range: [0, 2]\n", "line 6: a model has the unknown key 'layer_range'"),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LINEAR
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, LINEAR.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer_range: [20, 40]", "layer_range: [40, 20]", r"line 8: layer_range is \[40, 20\]; expected the first layer"),
        ("layer_range: [20, 40]", "layer_range: [20]", r"line 8: layer_range is \[20\]"),
        ("layer_range: [20, 40]", "layer_range: 20", "line 8: layer_range is a single value; expected a list"),
        ("      layer_range: [20, 40]\n", "", "line 7: a source without layer_range"),
        (
            "      layer_range: [20, 40]\n",
            "      layer_range: [0, 2]\n    residual_weight: 1\n",
            "line 9: 'residual_weight' is not",
        ),
        (
            "      layer_range: [20, 40]\n",
            "      layer_range: [0, 2]\n    - {model: org/third, layer_range: [0, 3]}\n",
            "line 6: a slice of runs of 2 and 3 layers",
        ),
    ],
)
def test_what_is_wrong_with_slices(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in STACKED
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, STACKED.replace(old, new))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for content, message in (
        (b"", "is empty"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"[" * 5000, "nested that deep|no valid YAML"),
        (b"just text", "line 1: the configuration is a single value; expected a mapping"),
        (b"x" * (1 << 21), "more than a configuration has"),
    ):
        (tmp_path / "merge.yml").write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / "merge.yml")
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "nothing.yml")
