"""Which probes, of which model and task: the ViT with wide sweeps, MiniLM with the cells that decide; cheap ones first."""

from dataclasses import dataclass, field
from typing import Any

MODELS = {"vit": "ViT 96 x 4", "minilm": "MiniLM 384 x 6"}
TASKS = {"vit": ("turned", "scrambled"), "minilm": ("module", "kind")}
KINDS = ("spectra", "gradient", "energy", "complexity", "importance", "position", "schedule", "rank", "tickets")
SEEDS = (0, 1, 2)

# Of the model and its rows. The ViT's patch projection has 4 columns: none of rank 5.
SUBJECT: dict[str, dict[str, Any]] = {
    "vit": {"task": "image-classification", "exclude": ("**.patch_embeddings.**",)},
    "minilm": {"task": "text-classification", "max_length": 24},
}
TRAINING: dict[str, dict[str, Any]] = {"vit": {"steps": 200, "batch_size": 32}, "minilm": {"steps": 120, "batch_size": 16}}
# About what did best on validation rows in tune_quality.py for slices of this width: rows take less than columns. Of the grids
# of schedules the best has to lie inside. Intervals of a point take more than three seeds. What else there could be more of
# (positions, ranks, tokens of a text: half the rows have 24 or fewer) is as much as fits two and a half hours on 2 cores.
RATES: dict[str, tuple[float, ...]] = {"vit": (0.02, 0.05), "minilm": (0.01, 0.02)}
FIVE = tuple(range(5))

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("vit", "spectra"): {},
    ("vit", "gradient"): {"seeds": SEEDS},
    ("vit", "energy"): {"seeds": SEEDS},
    ("vit", "complexity"): {},
    ("vit", "importance"): {"seeds": FIVE, "rates": RATES["vit"]},
    ("vit", "position"): {"seeds": FIVE, "rates": RATES["vit"], "positions": 5},
    ("vit", "schedule"): {"seeds": SEEDS, "rates": (0.01, 0.02, 0.05, 0.1)},
    ("vit", "rank"): {"seeds": SEEDS, "ranks": (1, 4, 16, 64, 96)},
    ("vit", "tickets"): {"seeds": FIVE, "rates": RATES["vit"], "whole_rate": 1e-3},
    ("minilm", "spectra"): {},
    ("minilm", "gradient"): {"seeds": SEEDS, "rows": 128, "rank": 16},
    ("minilm", "energy"): {"seeds": SEEDS, "rows": 800},
    ("minilm", "complexity"): {},
    ("minilm", "importance"): {
        "seeds": FIVE,
        "rates": (0.005, *RATES["minilm"]),
        "axes": ("column",),
        "categories": ("most", "least"),
        "rows": 128,
    },
    ("minilm", "position"): {"seeds": FIVE, "rates": (0.02,), "axes": ("column",), "positions": 4},
    ("minilm", "schedule"): {"seeds": SEEDS, "rates": (0.005, 0.01, 0.02, 0.05), "vary": (), "move_steps": 60},
    ("minilm", "rank"): {"seeds": SEEDS, "ranks": (1, 16, 384), "schedules": ("static",)},
    ("minilm", "tickets"): {
        "seeds": SEEDS,
        "rates": (0.02,),
        "axes": ("column",),
        "sources": ("rewound",),
        "rounds": 1,
        "keep": 0.3,
        "whole_rate": 2e-4,
    },
}
_CHECKPOINT = ("spectra",)  # looks at weights alone, so that all tasks share it
_UNTRAINED = ("spectra", "gradient", "energy", "complexity")


@dataclass(frozen=True)
class Probe:
    """One probe; ``task`` None: of the checkpoint alone."""

    kind: str
    model: str
    task: str | None
    settings: dict[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.kind, self.model, self.task) if part)


def _probe(kind: str, model: str, task: str | None) -> Probe:
    settings = dict(SETTINGS[model, kind])
    settings |= {"exclude": SUBJECT[model].get("exclude", ())}
    if task is not None:
        settings |= SUBJECT[model]
    if kind not in _UNTRAINED:
        settings |= TRAINING[model]
    return Probe(kind, model, task, settings)


def _planned() -> tuple[Probe, ...]:
    found: list[Probe] = []
    for kinds in (_UNTRAINED, tuple(kind for kind in KINDS if kind not in _UNTRAINED)):
        for model in MODELS:
            for kind in kinds:
                tasks: tuple[str | None, ...] = (None,) if kind in _CHECKPOINT else TASKS[model]
                found += [_probe(kind, model, task) for task in tasks]
    return tuple(found)


PROBES = _planned()
