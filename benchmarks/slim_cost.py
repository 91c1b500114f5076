"""What a candidate of a search costs beside its evaluation: NPS on a fully tuned MiniLM, 256 calibration rows.

    python benchmarks/slim_cost.py            about 5 minutes on 2 cores
    python benchmarks/slim_cost.py --table    Markdown of what benchmarks/results holds; runs nothing

A candidate is chosen by its weights, written into the model, and taken out again; an evaluation is the loss of the calibration
rows. Both are timed in turn, with other weights each time. The goals: at most a tenth of the evaluation's time, and no tensor
as large as the model.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
KINDS = ("magnitude", "layer", "kind", "magnitude*kind", "random")
KEEPS = (0.04, 0.01, 0.003)
GOAL = 0.1  # of an evaluation


class Largest(TorchDispatchMode):
    """Notes the largest storage that an operation inside gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return out


def measure(rounds: int, zoo: Path, results: Path) -> dict[str, Any]:
    from paring.slim.nps import Nps, pooled
    from paring.slim.placing import Placing
    from quality.store import versions
    from slimming.finetunes import NUM_CALIBRATION, fine_tune

    tune = fine_tune("docstrings", "module", "full", 0, zoo, results)
    size = sum(p.numel() * p.element_size() for p in tune.model.parameters())
    rows = []
    generator = torch.Generator().manual_seed(0)
    for keep in KEEPS:
        for kind in KINDS:
            cut, pool, scale = pooled(tune.vector, keep, Nps(kind))
            with Placing(tune.model, tune.vector) as placing, torch.no_grad():

                def assembled(of: Any = pool, on: Any = placing, n: int = len(cut.names), s: float = scale) -> float:
                    weights = (torch.rand(n, generator=generator) * 2 * s).tolist()
                    begun = time.perf_counter()
                    with on.candidate(of.split(of.select(weights))):
                        pass
                    return time.perf_counter() - begun

                with Largest() as largest:
                    assembled()
                candidates, evaluations = [], []
                for _ in range(rounds):
                    candidates += [assembled() for _ in range(3)]
                    begun = time.perf_counter()
                    tune.loss(tune.model)
                    evaluations.append(time.perf_counter() - begun)
            rows.append(
                {
                    "subspaces": kind,
                    "keep": keep,
                    "candidate_s": median(candidates),
                    "evaluation_s": median(evaluations),
                    "ratio": median(candidates) / median(evaluations),
                    "largest_tensor": largest.num_bytes / size,
                }
            )
            print(rows[-1], flush=True)
    return {
        "rows": NUM_CALIBRATION,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "model_bytes": size,
        "versions": versions(),
        "cells": rows,
    }


def markdown(record: dict[str, Any]) -> str:
    out = ["| subspaces | keep | candidate, of an evaluation | largest tensor, of the model |", "|---|---:|---:|---:|"]
    for row in record["cells"]:
        out.append(
            f"| {row['subspaces']} | {row['keep']:g} | {100 * row['ratio']:.1f} % | {100 * row['largest_tensor']:.1f} % |"
        )
    worst = max(row["ratio"] for row in record["cells"])
    out += ["", f"Goal, at most {100 * GOAL:g} %: {'met' if worst <= GOAL else 'missed'}, {100 * worst:.1f} % at most."]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--zoo", type=Path, default=HERE / "zoo", help="folder of the fine-tunes")
    parser.add_argument("--table", action="store_true", help="only the table of what there is")
    arguments = parser.parse_args()
    path = arguments.out / "slim_cost.json"
    if not arguments.table:
        from paring.files import replacing

        record = measure(arguments.rounds, arguments.zoo, arguments.out)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
