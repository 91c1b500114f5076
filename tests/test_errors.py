"""Bad input: a clear error before anything changes."""

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bert, bits, tokens, train
from paring import SliceConfig, sliced


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("encoder.layer.*.attention.self.qeury",)}, r"matches no module .*nearest are .*attention\.self\.query'"),
        ({"targets": ("re:.*qeury",)}, r"targets: 're:\.\*qeury' matches no module of the model"),
        ({"targets": ("re:(",)}, r"'re:\(' is no regular expression"),
        (
            {"targets": ("bert.embeddings.LayerNorm",)},
            r"matches 'bert\.embeddings\.LayerNorm', a LayerNorm, which cannot be sliced",
        ),
        ({"targets": ("bert.encoder",)}, "a BertEncoder, which cannot be sliced; sliceable are nn.Linear"),
        ({"targets": ("word_embeddings",)}, "an? Embedding, which cannot be sliced"),
        ({"exclude": ("nothing",)}, "exclude: 'nothing' matches no module"),
        (
            {"exclude": ("**",)},
            r"no layer to slice is left in BertForSequenceClassification: exclude is \('\*\*',\), which takes all of them",
        ),
        ({"targets": ("query",), "exclude": ("layer",)}, r"exclude is \('layer',\), which takes all of targets, \('query',\)"),
        ({"train_also": ("bert",)}, "train_also and the output head take all of them: bert, classifier; name targets"),
        (
            {"targets": ("layer.0.attention.self.query",), "layers": "upper:1"},
            r"layers is 'upper:1', of 3 block\(s\); what could be sliced stands in \[0\]",
        ),
        ({"train_also": ("clasifier",)}, "train_also: 'clasifier' matches no module .*nearest are 'classifier'"),
        ({"train_also": ("dropout",)}, r"train_also: '.*dropout' \(Dropout\) has no parameters to train"),
        ({"targets": ("classifier",), "train_also": ("classifier",)}, "'classifier' is in both targets and train_also"),
        ({"rank": 25}, r"rank 25 is larger than a layer: layer 'bert\.encoder\.layer\.0\.attention\.self\.query' has 24 rows"),
        ({"position": 21}, r"position 21 with rank 4 is beyond the extent: layer 'bert\.encoder.* has 24 rows"),
        ({"layer_window": 4}, r"layer_window is 4; the sliced layers stand in 3 block"),
        ({"layers": "upper:4"}, r"layers is 'upper:4'; the model has 3 block"),
        ({"layers": (3,)}, r"there is no block 3; the model has 3 block"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_unchanged(settings: dict, message: str) -> None:
    model = bert()
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        sliced(model, SliceConfig(**({"rank": 4, "move_steps": 10} | settings)))
    assert_same_bits(bits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_model_without_a_layer_to_slice_is_refused_by_what_it_has() -> None:
    config = SliceConfig(rank=4, move_steps=10)
    with pytest.raises(ValueError, match="no layer to slice is left in ReLU: it has none of nn.Linear"):
        sliced(nn.ReLU(), config)
    with pytest.raises(ValueError, match="left in Sequential: train_also and the output head take all of them: 0; name"):
        sliced(nn.Sequential(nn.Linear(8, 8)), config)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="left in Sequential: 0 left alone: tied to 1; name layers in targets"):
        sliced(tied, config)


def test_a_model_in_a_session_is_refused_whole_and_in_part() -> None:
    model = bert()
    config = SliceConfig(rank=4, move_steps=10)
    with sliced(model, config, verbose=False) as session:
        for part in (model, model.bert, nn.Sequential(model)):
            with pytest.raises(RuntimeError, match="already in a session"):
                sliced(part, config)
        with pytest.raises(RuntimeError, match="entered once"):
            session.__enter__()
        assert session.open  # unharmed
    with pytest.raises(RuntimeError, match="not open"):
        session.step()
    with pytest.raises(RuntimeError, match="never entered"):
        sliced(model, config).delta()


def test_wrapped_models_are_refused() -> None:
    with pytest.raises(ValueError, match="wrapped in OptimizedModule; enter the session on the bare model first"):
        sliced(torch.compile(bert()), SliceConfig(rank=4, move_steps=10))


def test_quantised_and_meta_weights_are_refused() -> None:
    model = bert()
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight = nn.Parameter(torch.zeros(24, 24, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"'bert\.encoder\.layer\.0\.attention\.self\.query' cannot be sliced.*int8 \(quantised\)"
    ):
        sliced(model, SliceConfig(rank=4, move_steps=10))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="layer '0' cannot be sliced: its weight is on the meta device"):
        sliced(empty, SliceConfig(rank=4, move_steps=10))


def test_computed_and_empty_weights_and_weights_trained_twice_are_refused() -> None:
    config = SliceConfig(rank=2, move_steps=10)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"layer '0' cannot be sliced: its weight is computed from others"):
        sliced(model, config)
    assert sliced(model, SliceConfig(rank=2, move_steps=10, exclude=("0",)), verbose=False).matrices.keys() == {"1"}
    with pytest.raises(ValueError, match="layer '0' cannot be sliced: its weight has no extent yet; run one batch first"):
        sliced(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), config)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '0' is sliced and shares its weight with '1', which is trained whole"):
        sliced(tied, SliceConfig(rank=2, move_steps=10, targets=("0",), train_also=("1",)))
    biased = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    biased[1].bias = biased[0].bias
    with pytest.raises(ValueError, match="layers '0' and '1' share a bias, but not their weight.*leave bias at False"):
        sliced(biased, SliceConfig(rank=2, move_steps=10, targets=("0", "1"), bias=True))
    with pytest.raises(ValueError, match="layer '0' is sliced and shares its bias with '1', which is trained whole"):
        sliced(biased, SliceConfig(rank=2, move_steps=10, targets=("0",), train_also=("1",), bias=True))
    sliced(biased, SliceConfig(rank=2, move_steps=10, targets=("0", "1")), verbose=False)


def test_layers_whose_forward_is_never_run_are_refused_or_named(capsys: pytest.CaptureFixture) -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"'0\.out_proj', a NonDynamicallyQuantizableLinear, which cannot be sliced"):
        sliced(model, SliceConfig(rank=4, move_steps=10, targets=("0.out_proj",)))
    with sliced(model, SliceConfig(rank=4, move_steps=10)) as session:
        assert [layer.name for layer in session.selection.layers] == ["1"]
    assert "0.out_proj left alone" in capsys.readouterr().err


def test_a_forgotten_session_step_is_noticed() -> None:
    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=10), verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters())
        model(**tokens()).loss.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"session\.step\(\) was not called"):
            model(**tokens())
        with pytest.raises(RuntimeError, match=r"session\.step\(\) was not called"):
            session.state_dict()
        session.step()
        model(**tokens())


def test_other_optimizers_are_none_of_ours() -> None:
    model, other = bert(), nn.Linear(2, 2)
    with sliced(model, SliceConfig(rank=4, move_steps=10), verbose=False):
        other(torch.ones(2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        assert torch.isfinite(model(**tokens()).loss)  # not refused as stale


def test_no_gradient_at_all_is_an_error() -> None:
    """As with a model compiled before the session, or reentrant checkpointing: the loss reaches the head alone."""
    model = bert()
    session = sliced(model, SliceConfig(rank=4, move_steps=10), verbose=False)
    with pytest.raises(RuntimeError, match=r"no slice received a gradient.*use_reentrant=False"), session:
        optimizer = torch.optim.AdamW(session.parameters())
        with torch.no_grad():
            features = model.bert(tokens()["input_ids"]).pooler_output
        model.classifier(features).sum().backward()
        optimizer.step()


def test_a_layer_that_never_takes_part_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "idle": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
    session = sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2, train_also=("head",)), verbose=False)
    with pytest.warns(UserWarning, match="1 sliced layer.* never received a gradient, e.g. 'idle'"), session:
        train(session, lambda i: model["head"](model["used"](torch.ones(8))).sum(), 3)


def test_an_idle_layer_is_named_once_the_window_has_been_there() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block["a"](x)
            return x.square().sum()

    config = SliceConfig(rank=4, modes=("row",), move_steps=1, layer_window=1, targets=("*",), train_also=())
    for steps, idle in ((1, 1), (2, 2)):  # what the window has not reached yet is not idle
        model = Partial()
        with pytest.warns(UserWarning, match=rf"{idle} sliced layer.* never received a gradient, e.g. 'blocks.{3 - idle}.b'"):
            with sliced(model, config, verbose=False) as session:
                train(session, lambda i, model=model: model(torch.ones(8)), steps)


def test_half_precision_tensors_that_another_module_reads_are_named() -> None:
    """nn.MultiheadAttention takes its out_proj's weight without calling out_proj."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.attend, self.head = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            return self.head(self.attend(x, x, x)[0]).float().square().sum()

    config = SliceConfig(rank=4, modes=("row",), move_steps=2, targets=("body",), train_also=("attend", "head"))
    named = r"without any gradient: attend\.out_proj\.weight, attend\.out_proj\.bias; .* load the model in fp32"
    model = Attending().bfloat16()
    with pytest.warns(UserWarning, match=named), sliced(model, config, verbose=False) as session:
        train(session, lambda i: model(torch.ones(3, 1, 8, dtype=torch.bfloat16)), 2)
    model = Attending()
    with sliced(model, config, verbose=False) as session:  # in fp32 all of it is trained
        train(session, lambda i: model(torch.ones(3, 1, 8)), 2)


def test_failing_to_enter_leaves_the_model_as_it_was(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = bert()
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(FileNotFoundError):
        sliced(model, SliceConfig(rank=4, move_steps=2), scratch="/no/such/folder").__enter__()
    assert [p.requires_grad for p in model.parameters()] == flags
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False):
        pass
