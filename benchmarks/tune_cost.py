"""What tuning costs: step time and bytes of paring's slices, full fine-tuning and PEFT's methods, interleaved.

    python benchmarks/tune_cost.py                    all models; about an hour on 2 cores, resumable
    python benchmarks/tune_cost.py --models bert-mini --rounds 24 --again
    python benchmarks/tune_cost.py --device cuda --precision bf16-autocast
    python benchmarks/tune_cost.py --table            Markdown of what benchmarks/results holds; runs nothing

In every round each method takes one step, in rotating order, and ratios are taken round by round: methods timed one
after the other differ by whatever else the machine did meanwhile.
"""

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cost import measure, methods, record, report
from cost.measure import Clock
from cost.methods import METHODS, PEERS, REFUSALS, SLICES, Tuning, prepare
from cost.models import WORKLOADS, Workload
from cost.record import Record, Settings

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.table:
        print(tables(args.out or RESULTS))
        return 0
    settings = Settings(
        args.methods, args.rounds, args.warmup, args.repeats, args.device, args.precision, args.tiny, torch.get_num_threads()
    )
    folder = args.out or (Path(tempfile.mkdtemp(prefix="tune_cost_")) if args.tiny else RESULTS)
    wanted = []
    for name in args.models:
        path = record.path_of(folder, name, settings)
        if path.exists() and not args.again:
            print(f"{name}: finished on {record.read(path)['date']}, see {path}; --again measures it anew")
        else:
            wanted.append((WORKLOADS[name], path))
    if wanted:
        print(f"about {estimate_s([w for w, _ in wanted], settings) / 60:.0f} minutes", flush=True)
        load_quietly()
    for workload, path in wanted:
        with measure.few_objects():
            run(workload, settings, path)
    print("\n" + tables(folder))
    return 0


def run(workload: Workload, settings: Settings, path: Path) -> None:
    """Measures one model; its record is at ``path`` in the end."""
    title = workload.title + (" (tiny sizes)" if settings.tiny else "")
    rec = record.resume(path, record.new(workload.name, title, settings))
    clock = Clock(settings.device, settings.precision == "bf16-autocast")
    batch = workload.batch(settings.tiny, settings.device, settings.dtype)
    tunings = prepare_all(workload, settings, batch, clock, rec)
    time_rounds(tunings, batch, clock, settings, rec, path)
    sliced = {name: t for name, t in tunings.items() if name in SLICES}
    print(f"{workload.name}: moves, entering and leaving", flush=True)
    rec["moves"] = {name: measure.moves(t, batch, clock, settings.repeats) for name, t in sliced.items()}
    rec["enter_and_leave"] = {name: measure.enter_and_leave(t, clock, settings.repeats) for name, t in sliced.items()}
    rec["summary"] = report.summarize(rec)
    rec["verdicts"] = report.verdicts(rec)
    record.finish(path, rec)


def prepare_all(
    workload: Workload, settings: Settings, batch: dict[str, Tensor], clock: Clock, rec: Record
) -> dict[str, Tuning]:
    """Every method on a model of its own, warm; what it weighs goes into the record."""
    tunings = {}
    for name in settings.methods:
        model = workload.model(settings.tiny, settings.device, settings.dtype)
        before = measure.alive()
        try:
            tuning = prepare(name, model, workload.family, settings.rounds)
            rec["sizes"][name] = asdict(measure.sizes(tuning, batch, clock, before))
        except REFUSALS as error:
            if name not in PEERS:
                raise
            rec["not_applicable"][name] = f"{type(error).__name__}: {error}"
            print(f"{workload.name}: {name} is not applicable: {error}", flush=True)
            continue
        for _ in range(settings.warmup - 1):
            measure.step(tuning, batch, clock)
        tunings[name] = tuning
    if "window" in tunings:
        # To the uppermost window, then to where a run that is continued had come to.
        session, cycle = tunings["window"].session, methods.NUM_WINDOWS * methods.window_move_steps(settings.rounds)
        assert session
        for _ in range(-session.num_steps % cycle + len(rec["rounds"])):
            session.step()
    return tunings


def time_rounds(
    tunings: dict[str, Tuning], batch: dict[str, Tensor], clock: Clock, settings: Settings, rec: Record, path: Path
) -> None:
    """One step of each method a round, until there are enough; the record is saved after each."""
    names = list(tunings)
    while names and (done := len(rec["rounds"])) < settings.rounds:
        start_s = time.perf_counter()
        shift = done % len(names)
        order = names[shift:] + names[:shift]
        gc.collect()
        gc.disable()  # a collection would fall into some method's step
        try:
            times = {name: measure.step(tunings[name], batch, clock) for name in order}
        finally:
            gc.enable()
        rec["rounds"].append({name: times[name] for name in names})
        record.save_partial(path, rec)
        left_s = (time.perf_counter() - start_s) * (settings.rounds - done - 1)
        print(f"{rec['model']}: round {done + 1} of {settings.rounds}, {left_s / 60:.1f} minutes left", flush=True)


def estimate_s(workloads: list[Workload], settings: Settings) -> float:
    """About how long the run takes, from the speed of one matrix product (and no better than within a factor of 2)."""
    clock, n = Clock(settings.device), 256 if settings.tiny else 1024
    a = torch.randn(n, n, device=settings.device, dtype=settings.dtype)
    a @ a
    start_s = clock.now_s()
    for _ in range(5):
        a @ a
    flops_per_s = 5 * 2 * n**3 / (clock.now_s() - start_s)
    steps = len(settings.methods) * (settings.warmup + settings.rounds)
    steps += 2 * settings.repeats * len(set(settings.methods) & set(SLICES))
    building_s = len(settings.methods) * 2
    return sum(1.5 * w.step_flops(settings.tiny) / flops_per_s * steps + building_s for w in workloads)


def tables(folder: Path) -> str:
    """Markdown of the finished models in ``folder``, in the order of ``WORKLOADS``."""
    paths = [p for p in folder.glob("tune_cost_*.json") if not p.name.endswith(".partial.json")]
    records = sorted(((p, record.read(p)) for p in paths), key=lambda r: (list(WORKLOADS).index(r[1]["model"]), r[0]))
    return "\n\n".join(report.markdown(rec) for _, rec in records) or f"no results in {folder}"


def load_quietly() -> None:
    """The libraries, without what transformers says of random models, and warnings about what PEFT does inside."""
    import peft  # noqa: F401
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm'>")
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_some_of(WORKLOADS), default=tuple(WORKLOADS), help="comma separated")
    parser.add_argument("--methods", type=_some_of(METHODS), default=tuple(METHODS), help="comma separated")
    parser.add_argument("--rounds", type=_positive, default=12, help="timed steps of each method")
    parser.add_argument("--warmup", type=_positive, default=2, help="steps of each method before; the first counts bytes")
    parser.add_argument("--repeats", type=_positive, default=5, help="moves timed, and times a session is entered")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "bf16-autocast"), help="default: fp32; bf16-autocast on cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the machinery, into a temporary folder")
    parser.add_argument("--again", action="store_true", help="also models that are finished")
    parser.add_argument("--out", type=Path, help=f"folder of the results; default {RESULTS}")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and run nothing")
    args = parser.parse_args(argv)
    args.precision = args.precision or ("bf16-autocast" if args.device == "cuda" else "fp32")
    return args


def _some_of(known: dict) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
