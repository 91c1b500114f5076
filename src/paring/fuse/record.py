"""What a merge writes beside its weights: the configuration, what was merged (by fingerprints), a model card.

    config.json          the main model's (the base, else the first), with the output's layers, type and vocabulary
    paring-fuse.yml      the configuration, as it was
    paring-fuse.json     by what the inputs can be known again, and the output
    README.md            a model card

No time and no path of this machine's are in them, beside those that the configuration names: the same inputs give the same
files.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from blake3 import blake3

from paring import __version__
from paring.delta.card import HUB_NAME, cell
from paring.delta.checkpoint.fingerprint import total
from paring.delta.checkpoint.write import LaidOut
from paring.fuse.config import Reference
from paring.fuse.plan import Plan
from paring.fuse.tokens import Vocabulary

CONFIG, RECORD, CARD = "paring-fuse.yml", "paring-fuse.json", "README.md"
_FORMAT = 1

Hashes = Mapping[Reference, Mapping[str, str]]


def run_key(plan: Plan, device: str, shard_bytes: int, allow: Collection[str], fitted: Mapping[str, str]) -> str:
    """A hash of all that decides over the output: two runs of one key write the same bytes.

    Args:
        fitted: hashes of the tensors that are written as they are given.
    """
    content: dict[str, Any] = {
        "configuration": plan.config.text,
        "files": [plan.models[r].before for r in plan.config.references],
        "settings": [device, shard_bytes, sorted(allow)],
        "versions": [__version__, torch.__version__],
    }
    if fitted:
        content["fitted"] = dict(fitted)
    return str(blake3(json.dumps(content).encode()).hexdigest(16))


def other_files(
    plan: Plan, vocabulary: Vocabulary | None, written: Mapping[str, str], hashes: Hashes, files: Sequence[LaidOut],
    fitted: Collection[str] = (),
) -> dict[str, bytes]:  # fmt: skip
    """Name -> content of all files beside weights and index.

    Args:
        written: the output's tensors, name -> hash.
        hashes: of the inputs' tensors. fitted: names of those that were tuned after they were merged.
    """
    record = _record(plan, written, hashes, files, fitted)
    row = f"| *this model* | {record['output']['tensors']} tensors | `{record['output']['fingerprint']}` |"
    found = {
        CONFIG: plan.config.text.encode(),
        RECORD: _json(record),
        CARD: "\n".join(_card(plan, record, [row])).encode() + b"\n",
    }
    if plan.model_config is not None:
        config = dict(plan.model_config)
        if vocabulary:
            text = config.get("text_config")
            for place in (config, text) if isinstance(text, dict) else (config,):
                if "vocab_size" in place:
                    place["vocab_size"] = vocabulary.size
        found["config.json"] = _json(config)
    return found


def bank_files(plan: Plan, hashes: Hashes, shared: str, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Name -> content of all files of a bank beside its vectors.

    Args:
        shared: by what its shared vector is known; tasks: what is said of each, with ``scale`` and ``bytes``.
    """
    record = _inputs(plan, hashes) | {"output": {"shared": shared, "tasks": dict(tasks)}}
    rows = [f"| *the shared vector* | | `{shared}` |"]
    rows += [
        f"| *{cell(name)}* | a mask of it, scale {task['scale']:.4f}, {task['bytes']:,} bytes | |"
        for name, task in tasks.items()
    ]
    use = (
        "",
        "Not a model by itself but a bank of tasks: `paring.Bank(base, FOLDER)` swaps between them in memory, and `paring bank "
        "activate FOLDER NAME --base BASE --out OUT` writes one as a checkpoint.",
    )
    return {
        CONFIG: plan.config.text.encode(),
        RECORD: _json(record),
        CARD: "\n".join(_card(plan, record, [*rows, *use])).encode() + b"\n",
    }


def _record(
    plan: Plan, written: Mapping[str, str], hashes: Hashes, files: Sequence[LaidOut], fitted: Collection[str]
) -> dict[str, Any]:
    infos = {name: info for file in files for name, info in file.order}
    entries = {n: (str(i.dtype).removeprefix("torch."), list(i.shape), written[n]) for n, i in infos.items()}
    output: dict[str, Any] = {"fingerprint": total(entries), "tensors": len(entries)}
    if fitted:
        tuned = {n: of for n, of in entries.items() if n in fitted}
        output["fitted"] = {"fingerprint": total(tuned), "tensors": len(tuned)}
    return _inputs(plan, hashes) | {"output": output}


def _inputs(plan: Plan, hashes: Hashes) -> dict[str, Any]:
    """What was merged, and how."""
    config, models = plan.config, []
    for reference in config.references:
        model = plan.models[reference]
        role = "base" if reference == config.base else "model"
        models.append({"name": model.public, "role": role} | model.facts(hashes.get(reference, {})))
        if model.base and model.base not in plan.models.values():
            models[-1]["base"] = model.base.public
    return {
        "format": _FORMAT,
        "tool": f"paring {__version__}",
        "torch": torch.__version__,
        "merge_method": config.method.name,
        "paper": config.method.paper,
        "scope": config.scope,
        "seed": config.seed,
        "models": models,
    }


def _card(plan: Plan, record: Mapping[str, Any], output: Sequence[str]) -> Iterator[str]:
    """The lines of a model card; ``output``: the last rows of its table, and what follows."""
    config = plan.config
    hub = [r.model.partition("@")[0] for r in config.references if not r.adapter]
    hub = [name for name in dict.fromkeys(hub) if HUB_NAME.fullmatch(name)]
    yield "---"
    if hub:
        yield from ("base_model:", *(f"- {json.dumps(name)}" for name in hub), "base_model_relation: merge")
    yield from ("tags:", "- merge", "- paring", "---", "")
    yield f"# A merge of {len(record['models'])} models by {config.method.name}"
    yield ""
    yield f"{config.method.about[:1].upper()}{config.method.about[1:]} ({config.method.paper}); computed in fp32."
    yield from ("", "| model | | known by |", "|---|---|---|")
    for model in record["models"]:
        kind = model["role"] if model["kind"] == "checkpoint" else f"{model['role']}, {model['kind']}"
        yield f"| {cell(model['name'])} | {kind} | `{model['fingerprint']}` |"
    yield from output
    longest = max((len(m[0]) for m in re.finditer(r"`+", config.text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from ("", "## Configuration", "", f"{fence}yaml", config.text.rstrip(), fence, "")
    made = f"({record['tool']}, PyTorch {record['torch']})"
    if number := record["output"].get("fitted", {}).get("tensors"):
        yield f"`paring fuse {CONFIG} OUT` makes this as it was before {number} tensors were fitted {made}; these are here."
    else:
        yield f"`paring fuse {CONFIG} OUT` makes it again, byte for byte {made}."


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
