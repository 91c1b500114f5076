"""What is tried: merge methods, the settings among which validation rows choose, and what is done with a delta before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Merge:
    """One line of the table.

    Attributes:
        title: for a reader.
        method: of ``paring.fuse.registry``; "none": the fine-tunes themselves, "base": the pretrained body with their heads.
        grid: values of its parameters; each combination is tried.
        front: what is merged: "whole" full fine-tunes, these pruned by "magnitude", "dare", "nps" or "fitted", or instead
            "slices" at one place, or slices in "lanes", which have no entry in common.
        searched: whether a weight for each task is searched on calibration rows.
        fitted: whether the values of the average are tuned towards the fine-tunes' answers on calibration rows.
        heads: whether the tasks' heads are tuned with them.
        static: one model for all tasks; not, where each task has a state of its own beside it.
    """

    title: str
    method: str
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    front: str = "whole"
    searched: bool = False
    fitted: bool = False
    heads: bool = False
    static: bool = True

    def settings(self) -> Sequence[Setting]:
        """Every combination."""
        names = [name for name, _ in self.grid]
        return [dict(zip(names, values, strict=True)) for values in product(*(values for _, values in self.grid))]


KEEP = 0.1  # of a pruned task vector
_SUM = (("weight", (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)),)
_LAMBDA = ("lambda", (0.5, 0.75, 1.0, 1.5, 2.0, 3.0))
_ONE = ("weight", (1.0,))
_RANDOM = (("density", (0.2, 0.5)), ("weight", (0.1, 0.2, 0.3, 0.5)))

MERGES = {
    "base": Merge("pretrained body, the fine-tunes' heads", "base"),
    "average": Merge("weight average", "linear", (_ONE,)),
    "karcher": Merge("Karcher mean", "karcher"),
    "multislerp": Merge("multislerp", "multislerp", (_ONE,)),
    "model_stock": Merge("model stock", "model_stock"),
    "task_arithmetic": Merge("task arithmetic", "task_arithmetic", _SUM),
    "ties": Merge("TIES", "ties", (_ONE, ("density", (0.2, 0.5)), _LAMBDA)),
    "dare_linear": Merge("DARE", "dare_linear", _RANDOM),
    "dare_ties": Merge("DARE, TIES", "dare_ties", _RANDOM),
    "della": Merge("DELLA", "della", (("density", (0.2, 0.5)), _ONE, _LAMBDA)),
    "breadcrumbs": Merge("breadcrumbs", "breadcrumbs", (("density", (0.2, 0.5, 0.9)), ("weight", (0.2, 0.3, 0.5)))),
    "breadcrumbs_ties": Merge(
        "breadcrumbs, TIES", "breadcrumbs_ties", (("density", (0.2, 0.5, 0.9)), ("weight", (0.2, 0.3, 0.5)))
    ),
    "sce": Merge("SCE", "sce", (("select_topk", (0.1, 0.5, 1.0)),)),
    "consensus": Merge(
        "consensus (TALL masks)", "consensus", (("mask_lambda", (0.2, 0.4, 0.6)), ("lambda", (0.2, 0.3, 0.5, 0.8)))
    ),
    "pcb": Merge("PCB", "pcb", (("density", (0.1, 0.2)), _LAMBDA)),
    "tsv": Merge("TSV-M", "tsv", (_LAMBDA,)),
    "iso": Merge("Iso-C", "iso", (_LAMBDA,)),
    "wudi": Merge("WUDI", "wudi", (("steps", (300,)), ("lambda", (0.5, 1.0)))),
    "wudi_exact": Merge("WUDI, its minimum", "wudi", (("steps", (0,)), ("lambda", (0.5, 1.0)))),
    "searched": Merge("task arithmetic, weights searched", "task_arithmetic", searched=True),
    "magnitude+sum": Merge("magnitude, task arithmetic", "task_arithmetic", _SUM, "magnitude"),
    "dare+searched": Merge("DARE, weights searched", "task_arithmetic", (), "dare", searched=True),
    "nps+sum": Merge("NPS, task arithmetic", "task_arithmetic", _SUM, "nps"),
    "nps+ties": Merge("NPS, TIES", "ties", (_ONE, ("density", (1.0,)), _LAMBDA), "nps"),
    "nps": Merge("NPS (pruning and weights searched)", "nps", (), "nps", searched=True),
    "fitted+sum": Merge("slim fitted, task arithmetic", "task_arithmetic", _SUM, "fitted"),
    "fitted": Merge("slim fitted, weights searched", "nps", (), "fitted", searched=True),
    "tsv+searched": Merge("TSV-M, weights searched", "tsv", searched=True),
    "slices+sum": Merge("slices, task arithmetic", "task_arithmetic", _SUM, "slices"),
    "lanes": Merge("slices in lanes, put together", "disjoint", (), "lanes"),
    "lanes+sum": Merge("slices in lanes, task arithmetic", "task_arithmetic", _SUM, "lanes"),
    "lanes+searched": Merge("slices in lanes, weights searched", "task_arithmetic", (), "lanes", searched=True),
    "fit+heads": Merge("fitted merge (paring fuse --fit)", "task_arithmetic", fitted=True, heads=True),
    "fit": Merge("fitted merge, the fine-tunes' heads (--fit-head-rate 0)", "task_arithmetic", fitted=True),
    "nps+fit": Merge("NPS, fitted merge, the fine-tunes' heads", "task_arithmetic", (), "nps", fitted=True),
    "emr": Merge("EMR (a mask and a scale for each task)", "emr", static=False),
}
