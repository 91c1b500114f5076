"""The snippets of the SliceFine project page, verbatim but for the lines marked: imports, and what transformers renamed.

A CPU has no fp16 training, so that one value is what the machine can do.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring
from conftest import assert_same_bits, bert, bits

INJECT = """
  from paring import inject_peft, restore_layers              # page: from slice import

  # Insert SliceFine slices into your model (no new params added)
  inject_peft(
      model,                 # your HF/torch model
      rank=5,                # slice rank (capacity)
      position=0,            # starting column/row position
      bias=False,            # include bias slices or not
      mode=("row","column"), # ("row",) or ("column",) or both
  )
"""

TRAIN = """
  from transformers import TrainingArguments
  from paring import SliceTrainer                             # page: from SliceTrainer import

  training_args = TrainingArguments(
      output_dir="dir",
      learning_rate=3e-4,
      remove_unused_columns=False,
      per_device_train_batch_size=32,
      per_device_eval_batch_size=32,
      num_train_epochs=4,
      eval_strategy="steps",                                  # page: evaluation_strategy
      save_strategy="no",
      logging_steps=100,
      save_steps=100,
      eval_steps=100,
      lr_scheduler_type="cosine",
      warmup_steps=10,
      report_to=[],
      fp16=has_gpu,                                           # page: True
  )

  trainer = SliceTrainer(
      model=model,
      train_dataset=tokenized_datasets["train"],
      eval_dataset=tokenized_datasets["validation"],
      data_collator=data_collator,
      compute_metrics=compute_metrics,
      training_args=training_args,
      move_steps=1000,             # switch active slice every N steps
      rank=5,
      learnig_rate_decay=0.0001,   # (param name as in your code)
      min_learning_rate=0.00001,
      position=0,
      max_position=768,
      bias=False,
      peft_modes=("row","column"), # or ("row",) / ("column",)
      targets=None,                # or a list of target layer names
      verbose=True,
      tollerance=1,                # (param name as in your code)
      rank_decay=1,
      min_rank=1,
  )

  trainer.run()
"""

RESTORE = """
  # After training, fold the learned slices back into the original weights
  from paring import restore_layers                           # page: from slice import

  restore_layers(model)  # model is now slice-free and ready for deployment
"""

TARGETS = """
  # Example: restrict SliceFine to attention projections only
  targets = [
      "encoder.layer.*.attention.self.query",
      "encoder.layer.*.attention.self.key",
      "encoder.layer.*.attention.self.value",
      "encoder.layer.*.attention.output.dense",
  ]

  inject_peft(model, rank=4, position=0, bias=False, mode=("row","column"))
  trainer = SliceTrainer(
      model=model,
      train_dataset=train_rows,                               # page: ...
      eval_dataset=eval_rows,                                 # page: ...
      data_collator=data_collator,
      compute_metrics=compute_metrics,
      training_args=training_args,
      move_steps=800,
      rank=4,
      position=0,
      max_position=768,
      peft_modes=("row","column"),
      targets=targets,   # only apply to matched layers
  )
  trainer.run()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page writes into "dir"; and small steps gain nothing from a second thread."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=3, num_labels=3, **shape))


def surroundings(model: nn.Module, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page takes for granted."""
    from transformers import default_data_collator

    return {
        "model": model,
        "tokenized_datasets": {"train": rows, "validation": rows[:32]},
        "data_collator": default_data_collator,
        "compute_metrics": lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        "has_gpu": torch.cuda.is_available(),
        "train_rows": rows,
        "eval_rows": rows[:32],
    }


def texts() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (96, 6), generator=generator)
    return [{"input_ids": i, "labels": int(i[0]) % 3} for i in ids]


def pictures() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 3} for i in range(96)]


def run(snippet: str, names: dict[str, Any]) -> None:
    exec(compile(textwrap.dedent(snippet), "project page", "exec"), names)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize(("model", "rows"), [(bert, texts), (vit, pictures)], ids=["BERT", "ViT"])
def test_the_page_runs_as_it_stands(model: Any, rows: Any) -> None:
    tuned = model()
    names = surroundings(tuned, rows())
    run(INJECT, names)
    assert any("slice_weight" in m._parameters for m in tuned.modules())
    run(TRAIN, names)
    run(RESTORE, names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 12 and trainer.session.num_steps == 12
    assert trainer.plateau.tolerance == 1 and trainer.plateau.learning_rate_decay == 0.0001
    assert trainer.plateau.min_learning_rate == 0.00001 and (trainer.plateau.rank_decay, trainer.plateau.min_rank) == (1, 1)
    config = trainer.config
    assert (config.rank, config.move_steps, config.modes, config.max_position) == (5, 1000, ("row", "column"), 768)
    before = model()
    assert [type(m) for m in tuned.modules()] == [type(m) for m in before.modules()]
    assert list(tuned.state_dict()) == list(before.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), before.state_dict().values(), strict=True))
    trainer.session.revert()
    assert_same_bits(bits(tuned), bits(before))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_page_s_targets(capsys: pytest.CaptureFixture) -> None:
    names = surroundings(bert(), texts())
    run(INJECT.split("# Insert")[0], names)
    run(TRAIN.split("trainer = ")[0], names)
    run(TARGETS, names)
    layers = [layer.name for layer in names["trainer"].session.selection.layers]
    assert len(layers) == 12 and {name.partition("attention.")[2] for name in layers} == {
        "self.query",
        "self.key",
        "self.value",
        "output.dense",
    }
    assert names["trainer"].session.num_steps == 12


def test_inject_and_restore_in_a_loop_of_one_s_own() -> None:
    model = bert()
    session = paring.inject_peft(model, rank=2, mode=("column",), move_steps=2, verbose=False)
    optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
    batch = {"input_ids": torch.randint(0, 50, (4, 5)), "labels": torch.tensor([0, 1, 2, 0])}
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        session.step()
        optimizer.zero_grad()
    assert paring.restore_layers(model) is model
    assert not session.open and all(p.requires_grad for p in model.parameters())
    assert paring.restore_layers(model) is model  # once more: nothing to do
    tuned = bits(model)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.values(), bits(bert()).values(), strict=True))


def test_restore_can_revert() -> None:
    model = bert()
    session = paring.inject_peft(model, rank=2, verbose=False)
    optimizer = torch.optim.SGD(session.parameters(), lr=1.0)
    model(input_ids=torch.randint(0, 50, (4, 5)), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    session.step()
    paring.restore_layers(model, revert=True)
    assert_same_bits(bits(model), bits(bert()))
    with pytest.raises(ValueError, match="inject_peft has no session on this model"):
        paring.restore_layers(model, revert=True)


def test_a_trainer_does_not_take_over_what_has_been_trained(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    model = bert()
    session = paring.inject_peft(model, rank=2, verbose=False)
    optimizer = torch.optim.SGD(session.parameters(), lr=1.0)
    model(input_ids=torch.randint(0, 50, (4, 5)), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    session.step()
    with pytest.raises(RuntimeError, match=r"has taken 1 steps; call restore_layers\(model\) before it goes to a trainer"):
        paring.SliceTrainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    assert session.open
    paring.restore_layers(model)
