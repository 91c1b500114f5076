"""SliceCallback in Trainers that know nothing of slices: Hugging Face's own, a subclass, TRL's SFTTrainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import paring
from conftest import assert_same_bits, bert, bits
from paring import SliceCallback, SliceConfig, SliceTrainer

CONFIG = SliceConfig(rank=3, move_steps=4)
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(count: int = 32) -> list[dict[str, Any]]:
    ids = torch.randint(0, 50, (count, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": i, "labels": int(i[0] > 25)} for i in ids]


def arguments(out: Path, kind: type = TrainingArguments, **more: Any) -> Any:
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_steps": 10, "logging_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 3, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return kind(output_dir=str(out), dataloader_pin_memory=False, **(settings | more))


def tune(out: Path, *, resume: str | None = None, **options: Any) -> tuple[Any, paring.SliceSession, Trainer]:
    model = bert(**DROPOUT)
    with paring.sliced(model, CONFIG, verbose=False) as session:
        trainer = Trainer(model, arguments(out), train_dataset=rows(), callbacks=[SliceCallback(session, **options)])
        trainer.train(resume_from_checkpoint=resume)
    return model, session, trainer


def test_a_plain_trainer_trains_what_slice_trainer_trains(tmp_path: Path) -> None:
    model, session, trainer = tune(tmp_path / "plain")
    ours = SliceTrainer(bert(**DROPOUT), arguments(tmp_path / "ours"), config=CONFIG, train_dataset=rows(), verbose=False)
    ours.train()
    assert session.num_steps == trainer.state.global_step == 10
    assert_same_bits(bits(model), bits(ours.model))
    logged = {e["step"]: e for e in trainer.state.log_history if "loss" in e}
    assert logged[2]["slice_row"] == 0 and logged[6]["slice_column"] == 0


def test_its_checkpoints_are_plain_and_resume_bit_for_bit(tmp_path: Path) -> None:
    whole, session, _ = tune(tmp_path)
    folder = tmp_path / "checkpoint-6"
    loaded = BertForSequenceClassification.from_pretrained(folder)
    assert list(loaded.state_dict()) == list(bert().state_dict())
    again, resumed, _ = tune(tmp_path, resume=str(folder))
    assert_same_bits(bits(again), bits(whole))
    # The Trainer had loaded tuned weights into the model; the way back is still that to the pretrained ones.
    resumed.revert()
    assert_same_bits(bits(again), bits(bert(**DROPOUT)))
    session.revert()
    assert_same_bits(bits(whole), bits(again))


def test_a_checkpoint_elsewhere_is_named(tmp_path: Path) -> None:
    whole, _, _ = tune(tmp_path / "a")
    (tmp_path / "a" / "checkpoint-6").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"checkpoint-6 is no checkpoint of a sliced run"):
        tune(tmp_path / "b", resume=str(tmp_path / "moved"))
    again, _, _ = tune(tmp_path / "b", resume=str(tmp_path / "moved"), resume_from=tmp_path / "moved")
    assert_same_bits(bits(again), bits(whole))


def test_it_refuses_what_would_train_nothing(tmp_path: Path) -> None:
    model = bert()
    session = paring.sliced(model, CONFIG, verbose=False)
    with pytest.raises(ValueError, match="its session is closed"):
        Trainer(model, arguments(tmp_path), train_dataset=rows(), callbacks=[SliceCallback(session)]).train()
    with paring.sliced(model, CONFIG, verbose=False) as opened:
        other = Trainer(bert(), arguments(tmp_path), train_dataset=rows(), callbacks=[SliceCallback(opened)])
        with pytest.raises(ValueError, match="the Trainer's optimizer holds none of the session's parameters"):
            other.train()


def test_a_subclass_with_a_loss_of_its_own(tmp_path: Path) -> None:
    class Smoothed(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return torch.nn.functional.cross_entropy(model(**inputs).logits, inputs["labels"], label_smoothing=0.1)

    model = bert()
    with paring.sliced(model, CONFIG, verbose=False) as session:
        Smoothed(model, arguments(tmp_path), train_dataset=rows(), callbacks=[SliceCallback(session)]).train()
    assert session.num_steps == 10
    session.revert()
    assert_same_bits(bits(model), bits(bert()))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_trl_s_trainer(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs the extra 'trl'")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {c: i for i, c in enumerate(["<pad>", "</s>", "<s>", *"abcdefghijklmnopqrstuvwxyz "])}
    inner = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    data = Dataset.from_dict({"text": ["a thin slice", "of every matrix", "moves along", "and is trained"] * 4})
    model = llama()
    with paring.sliced(model, SliceConfig(rank=3, modes=("column",), move_steps=2), verbose=False) as session:
        trainer = trl.SFTTrainer(
            model,
            args=arguments(tmp_path, trl.SFTConfig, max_steps=5, save_strategy="no", max_length=16),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[SliceCallback(session)],
        )
        trainer.train()
    assert session.num_steps == 5
    delta = session.delta()
    assert {name.split(".")[2] for name in delta} == {"0", "1"}
    session.revert()
    assert_same_bits(bits(model), bits(llama()))
