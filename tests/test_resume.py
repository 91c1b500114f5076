"""A run killed and resumed gives, bit for bit, the weights of one never killed."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bert, bits, tokens, train
from paring import SliceConfig, sliced

CONFIG = {"rank": 5, "modes": ("row", "column"), "move_steps": 4, "bias": True, "order": "random"}

# A training script as a user would write one: it saves after every step and dies by SIGKILL at the step given.
SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from conftest import bert, bits, tokens
from paring import SliceConfig, sliced

model = bert().to({dtype})
with sliced(model, SliceConfig(**{config!r}), verbose=False) as session:
    optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2, fused=True)
    start = 0
    if os.path.exists("checkpoint.pt"):
        saved = torch.load("checkpoint.pt", weights_only=True)
        session.load_state_dict(saved["session"])
        optimizer.load_state_dict(saved["optimizer"])
        start = session.num_steps
    for i in range(start, 14):
        model(**tokens(seed=i)).loss.backward()
        optimizer.step()
        session.step()
        optimizer.zero_grad()
        torch.save(dict(session=session.state_dict(), optimizer=optimizer.state_dict()), "part.pt")
        os.replace("part.pt", "checkpoint.pt")
        if i + 1 == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
torch.save(bits(model), "final.pt")
"""


WINDOWED = {"rank": 5, "modes": ("column", "row"), "move_steps": 2, "layer_window": 2}


def run(folder: Path, script: str, *kills: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    (folder / "train.py").write_text(script)
    for kill in (*kills, -1):
        done = subprocess.run([sys.executable, "train.py", str(kill)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == (0 if kill == -1 else -signal.SIGKILL), done.stderr
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_killed_inside_and_between_windows(tmp_path: Path, dtype: str) -> None:
    script = SCRIPT.format(tests=os.path.dirname(__file__), config=CONFIG, dtype=dtype)
    never = run(tmp_path / "never", script)
    killed = run(tmp_path / "killed", script, 6, 8, 13)  # inside a window, at a move, inside a later one
    assert_same_bits(never, killed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 4, 7])  # in the upper window, at a move to it, in the lower one after the alternation
def test_a_windowed_alternating_run_resumes_bit_for_bit(stop: int, dtype: torch.dtype) -> None:
    def part(model: nn.Module, steps: range, saved: tuple | None = None) -> tuple:
        with sliced(model, SliceConfig(**WINDOWED), verbose=False) as session:
            optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
            if saved is not None:
                session.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            train(session, lambda i: model(**tokens(seed=i)).loss, len(steps), optimizer, first=steps.start)
            return session.state_dict(), copy.deepcopy(optimizer.state_dict())

    never, first, second = (bert().to(dtype) for _ in range(3))
    part(never, range(11))
    part(second, range(stop, 11), part(first, range(stop)))
    assert_same_bits(bits(second), bits(never))


def saved_run(model: nn.Module, steps: int = 6) -> dict:
    with sliced(model, SliceConfig(**CONFIG), verbose=False) as session:
        train(session, lambda i: model(**tokens(seed=i)).loss, steps)
        state = session.state_dict()
    return state


def test_resumed_session_reverts_to_the_base_and_has_the_whole_delta() -> None:
    tuned = bert()
    before = bits(tuned)
    state = saved_run(tuned)
    model = bert()
    with sliced(model, SliceConfig(**CONFIG), verbose=False) as session:
        session.load_state_dict(state)
        assert_same_bits(bits(model), bits(tuned))
        delta = session.delta()
    session.revert()
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), bits(tuned))


def test_state_of_another_configuration_base_or_model_is_refused_unchanged() -> None:
    state = saved_run(bert())
    with sliced(bert(), SliceConfig(**(CONFIG | {"rank": 4, "seed": 1})), verbose=False) as session:
        with pytest.raises(ValueError, match="another configuration: rank is 5, here 4, seed is 0, here 1"):
            session.load_state_dict(state)
    other = bert()
    with torch.no_grad():
        other.bert.encoder.layer[1].attention.self.key.weight.add_(1e-3)
    before = bits(other)
    with sliced(other, SliceConfig(**CONFIG), verbose=False) as session:
        with pytest.raises(ValueError, match=r"another base model: 'bert\.encoder\.layer\.1\.attention\.self\.key\.weight'"):
            session.load_state_dict(state)
        train(session, lambda i: other(**tokens(seed=i)).loss, 1)  # the session goes on
        with pytest.raises(ValueError, match=r"goes into a fresh session; this one has taken 1 steps"):
            session.load_state_dict(state)
    session.revert()
    assert_same_bits(bits(other), before)
    with sliced(bert(intermediate_size=44), SliceConfig(**CONFIG), verbose=False) as session:
        with pytest.raises(ValueError, match=r"was \[40, 24\] torch.float32, here it is \[44, 24\]"):
            session.load_state_dict(state)
    with sliced(bert(num_hidden_layers=2), SliceConfig(**CONFIG), verbose=False) as session:
        with pytest.raises(ValueError, match="it has no tensor 'bert.encoder.layer.2"):
            session.load_state_dict(state)
        with pytest.raises(ValueError, match="has version None; expected 1"):
            session.load_state_dict({})


def test_a_damaged_state_is_refused_before_anything_changes() -> None:
    model = bert().bfloat16()
    before = bits(model)
    good = saved_run(bert().bfloat16())
    key = "bert.pooler.dense.weight"
    rects = good["touched"][key]["rects"]
    beyond, master = rects.clone(), "bert.pooler.dense.0"
    beyond[0, :2] += 99

    def touched(**changes: object) -> dict:
        return {"touched": good["touched"] | {key: good["touched"][key] | changes}}

    def masters(**changes: torch.Tensor) -> dict:
        return {"masters": good["masters"] | changes}

    short = good["touched"][key]["values"][:-1]
    no_base = {k: v for k, v in good["touched"][key].items() if k != "base"}
    damaged = [
        ({"num_steps": -1}, "num_steps is -1; expected a whole number, at least 0"),
        ({"rank": 6}, "rank is 6; expected a whole number, from 1 to 5"),
        ({"rank": True}, "damaged: rank is True"),
        (touched(rects=beyond), f"the rectangles of '{key}' do not fit its shape"),
        (touched(rects=rects[:-1]), f"the rectangles of '{key}' do not fit"),
        (touched(rects=rects[:, :3]), rf"the rectangles of '{key}' are \[{len(rects)}, 3\], expected \[k, 4\]"),
        (touched(values=short), f"or its {short.numel()} values"),
        ({"touched": good["touched"] | {key: no_base}}, f"incomplete: '{key}' has no base"),
        ({"masters": {k: v for k, v in good["masters"].items() if k != master}}, f"copy of '{master}' is none, here"),
        (masters(unknown=torch.zeros(2)), r"working copy of 'unknown' is \[2\], here none"),
        ({"masters": good["masters"] | {master: torch.zeros(3)}}, rf"working copy of '{master}' is \[3\], here"),
    ]
    with sliced(model, SliceConfig(**CONFIG), verbose=False) as session:
        for changes, message in damaged:
            with pytest.raises(ValueError, match=message):
                session.load_state_dict(good | changes)
            assert_same_bits(bits(model), before)
        for name in good.keys() - {"version"}:
            with pytest.raises(ValueError, match=f"incomplete: it has no {name}"):
                session.load_state_dict({k: v for k, v in good.items() if k != name})
        session.load_state_dict(good)  # the session was left as it was
        train(session, lambda i: model(**tokens(seed=i)).loss, 1, first=6)
    session.revert()
    assert_same_bits(bits(model), before)
