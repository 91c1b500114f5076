"""Model cards: what the hub reads at the head, what a person reads below, and texts that would break either."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

import paring
from conftest import bert
from paring.delta.base import Base
from paring.delta.card import card, hub_name
from paring.delta.diff import diff
from paring.delta.taskvector import TaskVector


def changed(base_origin: str = "", **facts: object) -> TaskVector:
    before, after = bert(), bert()
    after.bert.encoder.layer[1].output.dense.weight.data[:, :3] += 0.5
    after.bert.encoder.layer[0].output.dense.bias.data += 0.5
    vector = diff(before, after)
    return TaskVector(vector.changes, Base(vector.base.tensors, vector.base.tied, base_origin), (), facts)


def head(text: str) -> dict[str, object]:
    empty, front, _ = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front)


def test_of_a_file(tmp_path: Path) -> None:
    vector = changed("org/base@main", licence="Apache-2.0", method="diff", config={"hidden_size": 24}, scores={"accuracy": 0.5})
    path = tmp_path / "mail.delta.safetensors"
    size = paring.save_delta(vector, path)
    text = card(path)
    assert head(text) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "library_name": "paring",
        "tags": ["paring", "delta", "task-vector"],
    }
    assert "# mail: a delta of org/base\n" in text
    assert f"| size | {size:,} bytes, " in text and "| base's fingerprint | `" + vector.base.total in text
    assert "| exactness | base + delta is bitwise the fine-tune |" in text
    assert '| scores | {"accuracy": 0.5} |' in text and "hidden_size" not in text
    assert "| changes | 2 tensors of the base, 0 new ones |" in text
    assert f"| keep | {24 * 3 + 24} of {24 * 40 + 24:,} entries of these tensors (0.09756) |" in text
    assert "| bert.encoder.layer.1 | 1 | 960 | 72 | " in text
    assert "paring apply org/base@main mail.delta.safetensors tuned/" in text
    assert text.endswith("|\n") and "\n\n\n" not in text


def test_python_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paring.save_delta(changed(), tmp_path / 'a "quoted".delta.safetensors')
    code = card('a "quoted".delta.safetensors').split("```python\n")[1].split("```")[0]
    lines, model, name = code.splitlines(), bert(), "bert.encoder.layer.1.output.dense.weight"
    before = copy.deepcopy(model.state_dict())
    assert lines[-1].startswith("applied.revert()")
    running = {"model": model}
    exec("\n".join(lines[:-1]), running)
    assert not torch.equal(model.state_dict()[name], before[name])
    exec(lines[-1], running)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_in_memory_and_rounded() -> None:
    text = card(0.5 * changed("folder", license="my own: terms"))
    assert head(text) == {
        "license": "other",
        "license_name": "my own: terms",
        "library_name": "paring",
        "tags": ["paring", "delta", "task-vector"],
    }
    assert "differences are rounded numbers" in text and "Layer by layer" not in text
    assert "# A delta\n" in text and "| changes | 2 tensors" in text and "apply BASE" in text


def test_hostile_texts_stay_in_their_cell() -> None:
    text = card(changed("x\n---\nlicense: mit", note="a | b\n## c <img src=x> [d](http://e) `f`", licence="mit\nbase_model: g"))
    assert head(text)["license_name"] == "mit\nbase_model: g" and "base_model" not in head(text)
    assert "| note | a \\| b ## c \\<img src=x\\> \\[d\\](http://e) \\`f\\` |" in text
    assert "\n## c" not in text and "paring apply BASE task.delta.safetensors" in text
    long = card(changed(note="x" * 1000))
    assert "x" * 199 + "… |" in long and "x" * 200 not in long


@pytest.mark.parametrize(("origin", "name"), [("org/base", "org/base"), ("org/b@main", "org/b"), ("base", None), ("", None)])
def test_names_on_the_hub(origin: str, name: str | None) -> None:
    assert hub_name(changed(origin)) == name


def test_of_what_is_no_delta(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no delta file"):
        card(tmp_path / "none")
