"""``paring tune``, from settings to what is printed in the end."""

import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import paring
from paring.delta.card import card
from paring.delta.files import save_delta
from paring.files import write_bytes
from paring.recipes.data import Data, load_examples
from paring.recipes.inputs import Inputs, prepare
from paring.recipes.models import load
from paring.recipes.settings import FILE, TuneSettings, from_mapping, read_config
from paring.tasks.extras import require
from paring.tune.config import SliceConfig

RESULTS, CHECKPOINTS, DELTA = "results.json", "checkpoints", "model.delta.safetensors"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        finished: False when it was interrupted; it can be resumed then.
        results: what ``results.json`` holds; empty when not finished.
    """

    finished: bool
    results: dict[str, Any]


def _print(line: str) -> None:
    print(line, flush=True)  # a pipe would hold it back


def tune(settings: TuneSettings, *, resume: bool = False, say: Say = _print) -> Outcome:
    """Tunes a model on a user's data and writes the result into ``settings.out``.

    Args:
        settings: of the run; for a resumed one those it was begun with (see ``resumed``).
        resume: go on from the last checkpoint in ``settings.out``.
        say: takes lines for the user.

    Raises:
        ValueError, OSError: bad settings, data or model; or ``out`` holds another run. Nothing is lost then.
        FloatingPointError: the loss was not finite; the checkpoints stay.
    """
    transformers = require("transformers", "paring tune")
    out = Path(settings.out)
    _check_out(out, resume)
    data = load_examples(
        settings.data,
        settings.task,
        text_column=settings.text_column,
        label_column=settings.label_column,
        validation=settings.validation,
        seed=settings.seed,
    )
    transformers.set_seed(settings.seed)  # of a new head, too
    loaded = load(settings, data.labels)
    inputs = prepare(settings, data, loaded)
    for note in (*data.notes, *loaded.notes, *inputs.notes):
        say(f"paring: {note}")
    num_steps = _num_steps(settings, len(inputs.train))
    config, rate = _slices(settings, loaded.model, num_steps)
    settings = replace(settings.with_slices(config, rate), max_steps=num_steps)
    out.mkdir(parents=True, exist_ok=True)
    settings.save(out)
    return _run(settings, config, data, loaded, inputs, resume, say)


def resumed(values: dict[str, Any], out: str) -> TuneSettings:
    """The settings of the run in ``out``, for going on with it.

    Args:
        values: what the user gave this time; may name where things lie anew.

    Raises:
        FileNotFoundError: there is no run in ``out``. ValueError: a setting was given that differs from the run's.
    """
    theirs = from_mapping(read_config(Path(out)), str(Path(out) / FILE)).as_dict()
    movable = ("data", "model", "out")
    differing = [
        f"{k} was {theirs[k]!r}, now {v!r}" for k, v in values.items() if k not in movable and _plain(v) != theirs.get(k)
    ]
    if differing:
        raise ValueError(
            f"{out} holds a run with other settings: {'; '.join(differing)}; resume it without them, or take another --out"
        )
    return from_mapping(theirs | {k: v for k, v in values.items() if k in movable} | {"out": out}, str(out))


def _run(
    settings: TuneSettings, config: SliceConfig, data: Data, loaded: Any, inputs: Inputs, resume: bool, say: Say
) -> Outcome:
    from transformers import PrinterCallback, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    from paring.recipes.interrupt import StopAtStep
    from paring.recipes.progress import Progress
    from paring.trainer.trainer import SliceTrainer

    out = Path(settings.out)
    checkpoints = out / CHECKPOINTS
    last = get_last_checkpoint(str(checkpoints)) if resume and checkpoints.is_dir() else None
    stopper = StopAtStep()
    set_seed(settings.seed)
    trainer = SliceTrainer(
        model=loaded.model,
        args=_arguments(settings, checkpoints),
        config=config,
        train_dataset=inputs.train,
        eval_dataset=inputs.validation,
        data_collator=inputs.collate,
        compute_metrics=inputs.metrics,
        callbacks=[stopper, Progress(inputs.metric, say)],
    )
    trainer.remove_callback(PrinterCallback)  # Progress says it better
    begun = time.perf_counter()
    with stopper.listening():
        trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - begun
    session = trainer.session
    assert session is not None and settings.max_steps is not None
    if stopper.asked and trainer.state.global_step < settings.max_steps:
        say(
            f"paring: stopped after step {trainer.state.global_step} of {settings.max_steps}; "
            f"go on with: paring tune --resume --out {settings.out}"
        )
        return Outcome(False, {})

    scores = {"validation": _score(trainer, inputs.validation, inputs.metric)}
    if inputs.test is not None:
        scores["test"] = _score(trainer, inputs.test, inputs.metric)
    delta = session.delta()
    delta_bytes = save_delta(delta, out / DELTA, _facts(settings, config, scores, loaded.model.config.to_dict()))
    loaded.model.config.save_pretrained(out)
    write_bytes(out / "README.md", card(out / DELTA).encode())
    if hasattr(loaded.processor, "save_pretrained"):
        loaded.processor.save_pretrained(out)
    if settings.save_full:
        loaded.model.save_pretrained(out / "model")
    total = sum(p.numel() for p in loaded.model.parameters())
    results = {
        "metric": inputs.metric,
        "scores": scores,
        "num_steps": trainer.state.global_step,
        "seconds": seconds,
        "num_trainable": session.num_trainable,
        "num_weights": total,
        "delta_bytes": delta_bytes,
        "model_bytes": sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        "rows": {"train": len(inputs.train), "validation": len(inputs.validation), "test": len(inputs.test or ())},
        "labels": list(data.labels),
        "history": trainer.state.log_history,
        "versions": {p: version(p) for p in ("torch", "transformers", "safetensors")} | {"paring": paring.__version__},
        "machine": platform.platform(),
    }
    write_bytes(out / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    shutil.rmtree(checkpoints, ignore_errors=True)  # the delta holds all of it now
    _report(settings, config, results, say)
    return Outcome(True, results)


def _facts(settings: TuneSettings, config: SliceConfig, scores: dict[str, float], model: dict[str, Any]) -> dict[str, Any]:
    """What travels with the delta: how it was made, but not where on this machine anything lay."""
    made = {k: v for k, v in settings.as_dict().items() if k not in ("model", "data", "out", *config.as_dict())}
    # By way of JSON, whatever the configuration's values are.
    described = json.loads(json.dumps(model, default=str))
    return {"method": "slices", "slices": config.as_dict(), "settings": made, "scores": scores, "config": described}


def _report(settings: TuneSettings, config: SliceConfig, results: dict[str, Any], say: Say) -> None:
    share = 100 * results["num_trainable"] / results["num_weights"]
    moves = "never moved" if config.move_steps is None else f"moved every {config.move_steps} steps"
    say(
        f"\nTrained {results['num_trainable']:,} of {results['num_weights']:,} entries at a time ({share:.2f} %): "
        f"{'/'.join(config.modes)} slices of rank {config.rank}, {moves}"
    )
    scored = ", ".join(f"{split} {results['metric']} {value:.4f}" for split, value in results["scores"].items())
    if results["metric"] == "loss":
        scored += ", " + ", ".join(f"{s} perplexity {math.exp(min(v, 700.0)):.2f}" for s, v in results["scores"].items())
    say(f"{results['num_steps']} steps in {results['seconds']:.0f} s; {scored}")
    times = results["model_bytes"] / results["delta_bytes"]
    say(f"Wrote {Path(settings.out) / DELTA}: {results['delta_bytes']:,} bytes, the model is {times:.0f} times as large")
    class_name = {
        "text-classification": "AutoModelForSequenceClassification",
        "image-classification": "AutoModelForImageClassification",
        "causal-lm": "AutoModelForCausalLM",
    }[settings.task]
    say(
        f"Use it:\n  config = transformers.AutoConfig.from_pretrained({settings.out!r})\n"
        f"  model = transformers.{class_name}.from_pretrained({settings.model!r}, config=config)\n"
        f"  paring.load_delta({str(Path(settings.out) / DELTA)!r}, model).apply(model)"
    )


def _score(trainer: Any, dataset: Any, metric: str) -> float:
    return float(trainer.evaluate(dataset)[f"eval_{metric}"])


def _arguments(settings: TuneSettings, checkpoints: Path) -> Any:
    import torch
    from transformers import TrainingArguments

    assert settings.max_steps is not None and settings.learning_rate is not None
    cuda = torch.cuda.is_available()
    if settings.precision == "fp16" and not cuda:
        raise ValueError("precision is 'fp16'; without a GPU expected 'fp32' or 'bf16'")
    eval_steps = settings.eval_steps or max(1, settings.max_steps // 10)
    return TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulation_steps,
        max_steps=settings.max_steps,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup * settings.max_steps),
        weight_decay=settings.weight_decay,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=2,
        logging_steps=eval_steps,
        seed=settings.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=settings.task == "causal-lm",
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        dataloader_pin_memory=cuda,
        use_cpu=not cuda,
    )


def _slices(settings: TuneSettings, model: Any, num_steps: int) -> tuple[SliceConfig, float]:
    recommended = SliceConfig.recommended(model, num_steps)
    return settings.slices() or _narrowed(settings, recommended.config), settings.learning_rate or recommended.learning_rate


def _narrowed(settings: TuneSettings, config: SliceConfig) -> SliceConfig:
    """The recommended slices, in the layers that the user named; in all blocks, if these were named by ``targets``."""
    return replace(
        config,
        targets=settings.targets,
        exclude=() if settings.targets else (*config.exclude, *settings.exclude),
        train_also=settings.train_also,
        layers=settings.layers or (None if settings.targets else config.layers),
        lane=settings.lane,
        seed=settings.seed,
    )


def _num_steps(settings: TuneSettings, num_rows: int) -> int:
    a_pass = math.ceil(num_rows / (settings.batch_size * settings.accumulation_steps))
    return settings.max_steps or max(1, round(settings.epochs * a_pass))


def _check_out(out: Path, resume: bool) -> None:
    """That nothing in ``out`` would be lost."""
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; expected a folder")
    if resume and FILE not in there:
        raise FileNotFoundError(f"out: there is no run to resume in {out}")
    if resume and RESULTS in there:
        raise ValueError(f"out: the run in {out} is finished; take another --out to tune anew")
    if resume or not there:
        return
    if FILE not in there:
        raise ValueError(f"out: {out} holds other files ({', '.join(there[:3])}); take a new folder")
    state = "a finished run" if RESULTS in there else "a run that was interrupted (go on with --resume)"
    raise ValueError(f"out: {out} holds {state}; take another folder")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
