"""The session trains what a slow obvious reference trains, whatever the loop and the optimizer."""

import copy

import pytest
import torch
from torch import Tensor, nn

from conftest import bert, bits, tokens, train
from paring import SliceConfig, sliced
from paring.tune.schedules import plan

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def loss_of(model: nn.Module):
    return lambda i: model(**tokens(seed=i)).loss


@pytest.mark.parametrize("modes", [("row",), ("column",), ("row", "column")])
@pytest.mark.parametrize("optimizer", ["adamw fused", "sgd momentum", "adagrad"])
def test_training_equals_masked_full_training(modes: tuple, optimizer: str) -> None:
    """The slow obvious reference: full gradients, cut to the slices, an optimizer on the cut, fresh at every move."""
    model = bert()
    reference = copy.deepcopy(model)
    config = SliceConfig(rank=5, modes=modes, move_steps=2, bias="row" in modes)
    with sliced(model, config, verbose=False) as session:
        train(session, loss_of(model), 7, OPTIMIZERS[optimizer](session.parameters()))
        matrices, head = session.matrices, list(session.selection.whole)
    assert head == ["classifier"]

    make = OPTIMIZERS[optimizer]
    modules = dict(reference.named_modules())
    head_optimizer = make(list(reference.classifier.parameters()))
    for i in range(7):
        active = plan(config, matrices, i)
        if i % 2 == 0:
            cuts: dict[str, list[nn.Parameter]] = {}
            for name, s in active.items():
                w, b = modules[name].weight.detach(), modules[name].bias.detach()
                part = w[s.start : s.stop] if s.axis == "row" else w[:, s.start : s.stop]
                cuts[name] = [nn.Parameter(part.clone().contiguous())]
                if config.bias and s.axis == "row":
                    cuts[name].append(nn.Parameter(b[s.start : s.stop].clone()))
            slice_optimizer = make([p for cut in cuts.values() for p in cut])
        reference.zero_grad()
        reference(**tokens(seed=i)).loss.backward()
        for name, s in active.items():
            gw = modules[name].weight.grad
            cuts[name][0].grad = (gw[s.start : s.stop] if s.axis == "row" else gw[:, s.start : s.stop]).clone()
            if len(cuts[name]) > 1:
                cuts[name][1].grad = modules[name].bias.grad[s.start : s.stop].clone()
        slice_optimizer.step()
        head_optimizer.step()
        with torch.no_grad():
            for name, s in active.items():
                w = modules[name].weight
                (w[s.start : s.stop] if s.axis == "row" else w[:, s.start : s.stop]).copy_(cuts[name][0])
                if len(cuts[name]) > 1:
                    modules[name].bias[s.start : s.stop] = cuts[name][1].detach()
    ours, theirs = bits(model), bits(reference)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["row", "column"])
def test_only_active_slices_and_the_head_change(name: str, mode: str) -> None:
    model = bert()
    before = bits(model)
    config = SliceConfig(rank=4, modes=(mode,), move_steps=None, position=3)
    with sliced(model, config, verbose=False) as session:
        train(session, loss_of(model), 3, OPTIMIZERS[name](session.parameters()))
    after = bits(model)
    layers = {layer.name for layer in session.selection.layers}
    for key, old in before.items():
        changed = old != after[key]
        owner, _, kind = key.rpartition(".")
        if owner.startswith("classifier"):
            assert changed.any()
        elif owner in layers and kind == "weight":
            outside = changed.clone()
            (outside[3:7] if mode == "row" else outside[:, 3:7]).fill_(False)
            assert not outside.any(), key
            # Keys have no bearing on attention through their bias alone, but their weights do: every slice moves.
            assert changed.any(), key
        else:
            assert not changed.any(), key


def test_gradient_accumulation_equals_one_batch() -> None:
    one, two = bert(), bert()
    batch = tokens(batch=8)
    config = SliceConfig(rank=4, move_steps=2)
    with sliced(one, config, verbose=False) as session:
        train(session, lambda i: one(**batch).loss, 5)
    with sliced(two, config, verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        for _ in range(5):
            for half in (slice(0, 4), slice(4, 8)):
                (two(**{k: v[half] for k, v in batch.items()}).loss / 2).backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    for name, value in bits(one).items():
        torch.testing.assert_close(value, bits(two)[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = bert(), bert()
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    config = SliceConfig(rank=4, move_steps=2)
    forwards: dict[int, int] = {}
    for model in (plain, checkpointed):
        model.train()
        query = model.bert.encoder.layer[0].attention.self.query
        query.register_forward_hook(lambda m, a, y: forwards.__setitem__(id(m), forwards.get(id(m), 0) + 1))
        with sliced(model, config, verbose=False) as session:
            train(session, loss_of(model), 5)
    assert list(forwards.values()) == [5, 10]
    for name, value in bits(plain).items():
        torch.testing.assert_close(value, bits(checkpointed)[name], rtol=1e-5, atol=1e-6)


def test_a_closure_sees_the_weights_inside_a_step() -> None:
    """LBFGS looks at the loss many times in one step; it must get far below what one look gives."""
    model, batch = bert(), tokens()
    config = SliceConfig(rank=4, modes=("row",), move_steps=None)
    with sliced(model, config, verbose=False) as session:
        optimizer = torch.optim.LBFGS(session.parameters(), lr=0.5, max_iter=12)
        seen = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            seen.append(loss.item())
            return loss

        optimizer.step(closure)
        session.step()
    assert len(set(seen)) == len(seen) > 5
    assert seen[-1] < seen[0] / 2


def test_a_hook_of_the_users_that_changes_the_output_counts() -> None:
    layer, head, x = nn.Linear(4, 6), nn.Linear(6, 2), torch.randn(3, 4)
    layer.register_forward_hook(lambda m, a, y: y * 0.5)
    model = nn.Sequential(layer, head)
    model(x).sum().backward()
    full = layer.weight.grad
    with sliced(model, SliceConfig(rank=2, modes=("row",), move_steps=None), verbose=False) as session:
        model(x).sum().backward()
        torch.testing.assert_close(session.parameters()[0].grad, full[:2])


def test_adagrad_starts_anew_with_its_groups_own_value() -> None:
    class Mine(torch.optim.Adagrad):
        pass

    model = bert()
    with sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False) as session:
        first, *others = session.parameters()
        groups = [{"params": [first], "initial_accumulator_value": 0.5}, {"params": others}]
        optimizer = train(session, loss_of(model), 2, Mine(groups, lr=0.05, initial_accumulator_value=0.1))
        assert torch.equal(optimizer.state[first]["sum"], torch.full_like(first, 0.5))
        assert torch.equal(optimizer.state[others[0]]["sum"], torch.full_like(others[0], 0.1))
        assert optimizer.state[first]["step"] == 0


@pytest.mark.parametrize("saved", [True, False])
def test_an_optimizer_whose_step_raised_leaves_nothing_behind(saved: bool) -> None:
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            if not self.state:
                self.state["tried"] = {}
                self.param_groups[0]["params"][0].data.add_(1.0)
                raise ZeroDivisionError
            return super().step(closure)

    model = bert()
    with sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False) as session:
        optimizer = Fragile(session.parameters(), lr=0.1)
        loss_of(model)(0).backward()
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        if saved:  # as a script may well do when a step fails
            assert session.state_dict()["num_steps"] == 0
            # What the step did change is in the weights, as in any module.
            assert torch.equal(session.parameters()[0], session._slots[0].weight[:4])
        optimizer.step()
        assert not model._forward_pre_hooks
        with pytest.raises(RuntimeError, match=r"session\.step\(\) was not called"):
            loss_of(model)(1)
        session.step()
        train(session, loss_of(model), 3, optimizer)
    assert not model._forward_pre_hooks
