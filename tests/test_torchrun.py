"""SliceTrainer under torchrun: two processes learn what one learns from the joined batches."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from conftest import assert_same_bits, bert

SCRIPT = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import bert
from paring import SliceConfig, SliceTrainer
from transformers import TrainingArguments

torch.set_num_threads(1)
size, out = int(sys.argv[3]), sys.argv[2]
ids = torch.randint(0, 50, (32, 6), generator=torch.Generator().manual_seed(1))
rows = [{"input_ids": i, "labels": int(i[0] > 25)} for i in ids]
args = TrainingArguments(
    output_dir=out, learning_rate=1e-2, per_device_train_batch_size=size, max_steps=8, report_to=[], use_cpu=True,
    logging_steps=4, save_steps=4, disable_tqdm=True, dataloader_pin_memory=False,
    lr_scheduler_type="constant", max_grad_norm=0.0,
    train_sampling_strategy="sequential", ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None, optim="sgd",
    average_tokens_across_devices=False,  # else the Trainer doubles the mean loss of models that do not sum over tokens
)
trainer = SliceTrainer(bert(), args, config=SliceConfig(rank=3, move_steps=3), train_dataset=rows, verbose=False)
trainer.train(resume_from_checkpoint=sys.argv[4] if len(sys.argv) > 4 else None)
torch.save(trainer.model.state_dict(), f"{out}/rank{trainer.args.process_index}.pt")
"""


def launch(folder: Path, out: str, processes: int, *more: str) -> dict[str, torch.Tensor]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parent)
    command = [sys.executable, str(script), tests, str(folder / out), str(8 // processes), *more]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(script)]
        command = [sys.executable, *torchrun, *command[2:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    states = [torch.load(folder / out / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]
    for state in states[1:]:
        assert_same_bits(states[0], state)
    return states[0]


def test_two_processes_equal_one_and_resume(tmp_path: Path) -> None:
    one = launch(tmp_path, "one", 1)
    two = launch(tmp_path, "two", 2)
    start = bert().state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoint-4").glob("slices*")) == ["slices.pt"]
    again = launch(tmp_path, "two-again", 2, str(tmp_path / "two" / "checkpoint-4"))
    assert_same_bits(again, two)
