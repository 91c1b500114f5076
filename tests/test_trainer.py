"""SliceTrainer on tiny models: the same steps as a bare loop, checkpoints without the model, resumption bit for bit."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments, default_data_collator

import paring
from conftest import assert_same_bits, bits
from paring import SliceConfig, SliceTrainer

CONFIG = SliceConfig(rank=3, move_steps=4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bert(dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(**shape, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout))


def rows(count: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (count, 6), generator=generator)
    return [{"input_ids": i, "labels": int(i[0] > 25)} for i in ids]


def arguments(out: Path, **more: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(out),
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "max_steps": 10,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(settings | more))


def trainer(out: Path, model: nn.Module | None = None, **more: Any) -> SliceTrainer:
    options = {key: more.pop(key) for key in list(more) if key in TrainingArguments.__dataclass_fields__}
    given = {"config": CONFIG, "verbose": False, "train_dataset": rows(), "eval_dataset": rows(8)} | more
    return SliceTrainer(model or bert(), arguments(out, **options), **given)


class Killed(TrainerCallback):
    """Raises at the end of a step, as a machine that goes down."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if state.global_step == self.after:
            raise RuntimeError("killed")


def test_it_takes_the_steps_a_bare_loop_takes(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def collate(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.append(default_data_collator(chosen))
        return seen[-1]

    plain = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no"}
    run = trainer(tmp_path, bert(0.0), data_collator=collate, **plain)
    run.train()

    model = bert(0.0).train()
    with paring.sliced(model, CONFIG, verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2, weight_decay=0.0)
        for batch in seen[:10]:
            model(**batch).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert run.state.global_step == run.session.num_steps == 10


def test_a_checkpoint_holds_what_was_learnt_and_not_the_model(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    files = {p.name: p.stat().st_size for p in (tmp_path / "checkpoint-9").iterdir()}
    assert "slices.pt" in files and "optimizer.pt" in files and "trainer_state.json" in files
    assert not [name for name in files if name.startswith(("model", "pytorch_model"))]
    model_bytes = sum(p.numel() * p.element_size() for p in run.model.parameters())
    assert files["slices.pt"] < model_bytes
    assert not [m for m in run.model.modules() if "slice_weight" in m._parameters]
    assert all(p.requires_grad for p in run.model.parameters())


@pytest.mark.parametrize("after", [4, 6], ids=["at a move", "inside a window"])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, after: int) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    killed = trainer(tmp_path / "killed", save_steps=2)
    killed.add_callback(Killed(after + 1))
    with pytest.raises(RuntimeError, match="killed"):
        killed.train()
    assert not killed.session.open
    again = trainer(tmp_path / "killed", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 10
    assert_same_bits(bits(again.model), bits(whole.model))
    again.session.revert()
    assert_same_bits(bits(again.model), bits(bert()))


def test_save_model_writes_a_delta_that_a_fresh_base_takes(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", save_strategy="no")
    run.train()
    run.save_model(str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.delta.safetensors",
        "training_args.bin",
    ]
    fresh = bert()
    paring.load_delta(tmp_path / "out" / "model.delta.safetensors", fresh).apply(fresh)
    assert_same_bits(bits(fresh), bits(run.model))


def test_save_full_writes_a_checkpoint_that_loads_without_paring(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_full=True)
    run.train()
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-10")
    assert_same_bits(bits(loaded), bits(run.model))
    assert list(loaded.state_dict()) == list(bert().state_dict())
    again = trainer(tmp_path, save_full=True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same_bits(bits(again.model), bits(run.model))


def test_logs_say_where_the_slices_are(tmp_path: Path) -> None:
    run = trainer(tmp_path, layer_window=None, save_strategy="no")
    run.train()
    logged = {e["step"]: e for e in run.state.log_history if "loss" in e}
    assert logged[2]["slice_row"] == 0 and logged[2]["slice_rank"] == 3 and "learning_rate" in logged[2]
    assert logged[6]["slice_column"] == 0 and "slice_row" not in logged[6]
    windowed = trainer(tmp_path, config=SliceConfig(rank=3, move_steps=4, layer_window=1), save_strategy="no")
    windowed.train()
    logged = {e["step"]: e for e in windowed.state.log_history if "loss" in e}
    assert (logged[2]["window_from_block"], logged[2]["window_to_block"]) == (1, 1)
    assert (logged[6]["window_from_block"], logged[6]["window_to_block"]) == (0, 0)


def test_moves_are_printed_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer(tmp_path, verbose=True, save_strategy="no").train()
    printed = capsys.readouterr().err
    assert "13 layers sliced (row/column, rank 3)" in printed
    assert "paring: step 4: slices move to column 0, rank 3; learning rate 0.007" in printed


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    run = trainer(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=3, learning_rate=0.3, verbose=False)
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(losses, key=lambda step: losses[step])
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_rates_and_ranks_decay_on_a_plateau(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "constant", "save_steps": 4}
    decays = {"learning_rate_decay": 0.004, "min_learning_rate": 0.003, "rank_decay": 1, "min_rank": 2, "tolerance": 1}
    run = trainer(tmp_path / "a", compute_metrics=_never_better, metric_for_best_model="flat", **options, **decays)
    run.train()
    logged = {e["step"]: (round(e["learning_rate"], 6), e["slice_rank"]) for e in run.state.log_history if "loss" in e}
    # The first evaluation is the best so far; each later one is none better.
    assert logged == {2: (0.01, 3), 4: (0.01, 3), 6: (0.006, 2), 8: (0.003, 2), 10: (0.003, 2)}
    again = trainer(tmp_path / "a", compute_metrics=_never_better, metric_for_best_model="flat", **options, **decays)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))
    assert_same_bits(bits(again.model), bits(run.model))


def _never_better(predictions: Any) -> dict[str, float]:
    return {"flat": 0.5}


def test_a_loss_that_is_not_finite_stops_and_loses_nothing(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.head, self.calls = nn.Linear(6, 6), nn.Linear(6, 2), 0

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            loss = nn.functional.cross_entropy(self.head(self.a(input_ids / 50)), labels)
            return {"loss": loss * math.nan if self.calls == 8 else loss}

    run = trainer(tmp_path, Bad(), save_steps=5, eval_dataset=None)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 8; the model holds the weights of step 7"):
        run.train()
    assert (tmp_path / "checkpoint-5" / "slices.pt").is_file()
    assert all(p.isfinite().all() for p in run.model.parameters()) and not run.session.open


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    folder = tmp_path / "checkpoint-9"
    other = trainer(tmp_path / "other", config=SliceConfig(rank=2, move_steps=4))
    with pytest.raises(ValueError, match="another configuration: rank is 3, here 2"):
        other.train(resume_from_checkpoint=str(folder))
    assert_same_bits(bits(other.model), bits(bert()))
    (folder / "slices.pt").write_bytes((folder / "slices.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"slices\.pt is damaged"):
        trainer(tmp_path / "other").train(resume_from_checkpoint=str(folder))
    (folder / "slices.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no checkpoint of a sliced run: slices\.pt is missing"):
        trainer(tmp_path / "other").train(resume_from_checkpoint=str(folder))


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config was given and rank too"):
        trainer(tmp_path, rank=2)
    with pytest.raises(ValueError, match="tolerance and tollerance are the same setting"):
        trainer(tmp_path, tolerance=1, tollerance=1)
    with pytest.raises(ValueError, match="args and training_args are the same setting"):
        trainer(tmp_path, training_args=arguments(tmp_path))
    with pytest.raises(ValueError, match="rates and ranks decay by evaluations; set eval_strategy"):
        trainer(tmp_path, rank_decay=1)
    with pytest.raises(ValueError, match="tolerance is -1; expected a whole number, at least 1"):
        trainer(tmp_path, tolerance=-1)
    with pytest.raises(ValueError, match="model_init cannot be used"):
        trainer(tmp_path, model_init=bert)
    with pytest.raises(ValueError, match="rank 30 is larger than a layer"):
        trainer(tmp_path, config=SliceConfig(rank=30, move_steps=4))


def test_accumulation_joins_batches(tmp_path: Path) -> None:
    plain = {"max_grad_norm": 0.0, "save_strategy": "no", "train_sampling_strategy": "sequential", "optim": "sgd"}
    joined = trainer(tmp_path, bert(0.0), per_device_train_batch_size=8, **plain)
    joined.train()
    parts = trainer(tmp_path, bert(0.0), per_device_train_batch_size=4, gradient_accumulation_steps=2, **plain)
    parts.model_accepts_loss_kwargs = False  # BERT's loss is a mean over the batch, whatever else it is told
    parts.train()
    assert parts.session.num_steps == joined.session.num_steps == 10
    for name, value in joined.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_bf16_autocast_and_bf16_weights(tmp_path: Path) -> None:
    for model in (bert(0.0), bert(0.0).bfloat16()):
        before = bits(model)
        run = trainer(tmp_path, model, bf16=True, save_strategy="no", learning_rate=0.1)
        run.train()
        assert run.session.num_steps == 10 and model.dtype == next(iter(before.values())).dtype
        assert any(not torch.equal(a, b) for a, b in zip(bits(model).values(), before.values(), strict=True))
        run.session.revert()
        assert_same_bits(bits(model), before)


def test_the_arguments_are_kept_with_the_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["global_step"] == 10
    assert json.loads((tmp_path / "checkpoint-10" / "config.json").read_text())["model_type"] == "bert"
