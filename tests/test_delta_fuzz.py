"""20,000 delta files made wrong (``mutations.py``): each is refused with a DeltaError, or does no harm.

They are read, decoded, put on the base and taken off, and summarised, in a process of its own that may take 512 MiB more
memory than it has when it begins and 1 s of processor time for each. One of them again:

    python tests/test_delta_fuzz.py FOLDER SEED NUMBER
"""

import json
import resource
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

NUM_FILES, SEED = 20_000, 4
MEMORY, SECONDS = 512 << 20, 1.0
GOLDEN = Path(__file__).parent / "golden"

# What a refusal says: each has to come up, or the files do not reach what they are to test.
REFUSALS = {
    "expected a safetensors file of at least 8": 1,
    "claims a header of": 20,
    "no valid JSON": 100,
    "stands in it twice": 20,
    "is no JSON": 20,
    "data_offsets": 50,
    "begins at byte": 3,
    "bytes long, expected": 50,
    "has delta format": 5,
    "its manifest lacks": 50,
    "which format 1 has not": 3,
    "is only in its manifest, or only in the file": 50,
    "the hash of its base's table": 20,
    "is no tensor of its base": 15,
    "the shape of": 20,
    "the count of": 5,
    "the value type of": 20,
    "the parts of": 5,
    "the group of": 3,
    "the rank of": 2,
    "the scale of": 1,
    "its blocks overlap": 10,
    "is not inside its tensor": 20,
    "no tensor type": 2,
    "their hash differs": 30,
    "cannot have": 100,
    "bits beyond the last": 10,
    "beyond the last of its": 5,
    "its mask keeps": 10,
    "positions up to": 10,
    "low bits are no": 2,
    "no delta is written so": 10,
    "cannot be read": 5,
    "its frame declares": 10,
    "do not begin with a Zstandard frame": 2,
    "needs a window of": 2,
    "a scale is negative, NaN or too large": 10,
    "holds NaN or infinity": 10,
    "values are within": 2,
    "neither true nor false": 1,
    "out of the range": 3,
    "is not the base of this delta": 100,
    "the manifest says": 10,
    "expected bytes in a row": 10,
    "which its index names": 5,
    "a list of file names in its folder": 20,
    "is of another delta than": 5,
    "is in another file of this delta": 5,
}


def test_no_file_does_harm(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", __file__, str(tmp_path), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert sum(told["made"].values()) == NUM_FILES
    assert told["outcomes"]["refused at once"] < 0.8 * NUM_FILES  # the rest gets further
    assert told["outcomes"]["refused when applied"] > 0.05 * NUM_FILES
    assert told["outcomes"]["fine"] > 0.02 * NUM_FILES
    rare = {text: told["refusals"].get(text, 0) for text, least in REFUSALS.items() if told["refusals"].get(text, 0) < least}
    assert not rare


class _TooLongError(BaseException):
    pass


def main(folder: Path, seed: int, only: int | None = None) -> int:
    import torch
    from safetensors.torch import load_file, save_file

    from mutations import File
    from paring.delta.files import INDEX
    from test_delta_format import Model

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    files = {p.name: p.read_bytes() for p in sorted(GOLDEN.glob("*.delta.safetensors")) if not p.name.startswith("example")}
    parsed = {name: File.parse(content) for name, content in files.items()}
    whole = {p.name: p.read_bytes() for p in sorted((GOLDEN / "sharded.delta").iterdir())}
    index = json.loads(whole[INDEX])
    state = load_file(GOLDEN / "base.safetensors") | load_file(GOLDEN / "expected" / "new.safetensors")
    save_file(state, folder / "base.safetensors")
    tries = _Tries(folder, Model(state))
    for name in files:  # also loads what is loaded at first use, before memory is limited
        (folder / "a.delta.safetensors").write_bytes(files[name])
        assert tries.run(folder / "a.delta.safetensors", checkpoint=True, numbers=True) == "fine", name
    tries.refusals.clear()
    status = Path("/proc/self/statm")
    if status.exists():
        limit = int(status.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGVTALRM, _too_long)
    made: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for number in range(NUM_FILES) if only is None else [only]:
        random = Random(f"{seed} {number}")
        if random.random() < 0.08:
            kind, path = _set(random, folder, dict(whole), index)
        else:
            kind, path = _single(random, folder, parsed)
        made[kind] += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            outcomes[tries.run(path, checkpoint=random.random() < 0.01, numbers=random.random() < 0.1)] += 1
        except BaseException as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            print(f"file {number} of seed {seed}, {kind!r}: {type(error).__name__}; it lies at {path}", flush=True)
            traceback.print_exc()
            return 1
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(json.dumps({"made": made, "outcomes": outcomes, "refusals": tries.refusals}))
    return 0


class _Tries:
    """Does to a file what users do, with a model that is the base."""

    def __init__(self, folder: Path, model: Any) -> None:
        import torch

        self._folder, self._model = folder, model
        self._now = [t.view(-1).view(torch.uint8) for t in model.state_dict().values()]
        self._base = [t.clone() for t in self._now]
        self._checkpoint = (folder / "base.safetensors").read_bytes()
        self.refusals: Counter[str] = Counter()

    def run(self, path: Path, *, checkpoint: bool, numbers: bool) -> str:
        from paring import DeltaError
        from paring.delta.files import load_delta
        from paring.delta.inspect import lines, summarise

        try:
            vector = load_delta(path)
        except DeltaError as error:
            self._refused(error)
            return "refused at once"
        "\n".join(lines(summarise(path))).encode()
        outcome = "fine"
        for lazy in vector.changes.values():
            try:
                lazy.load()
            except DeltaError as error:
                self._refused(error)
                outcome = "refused when read"
        try:
            vector.apply(self._model).revert()
        except DeltaError as error:
            self._refused(error)
            outcome = "refused when applied"
        self._unchanged()
        if numbers:
            self._numbers(path)
        if checkpoint:
            self._onto_checkpoint(vector, outcome)
        return outcome

    def _numbers(self, path: Path) -> None:
        from paring import DeltaError
        from paring.delta.files import load_delta

        try:
            vector = load_delta(path, self._model)
            for name in vector:
                vector[name]
        except DeltaError as error:
            self._refused(error)
        self._unchanged()

    def _onto_checkpoint(self, vector: Any, outcome: str) -> None:
        from paring import DeltaError
        from paring.delta.patch import apply_to_checkpoint

        out = self._folder / "out.safetensors"
        try:
            apply_to_checkpoint(self._folder / "base.safetensors", vector, out)
            assert out.exists()
            out.unlink()
        except DeltaError as error:
            self._refused(error)
        assert not [p for p in self._folder.iterdir() if "out" in p.name], "something was left behind"
        assert (self._folder / "base.safetensors").read_bytes() == self._checkpoint

    def _refused(self, error: Exception) -> None:
        text = str(error)
        text.encode()
        for part in REFUSALS:
            self.refusals[part] += part in text

    def _unchanged(self) -> None:
        import torch

        assert all(map(torch.equal, self._now, self._base)), "the base has changed"


def _single(random: Random, folder: Path, parsed: dict[str, Any]) -> tuple[str, Path]:
    from mutations import mutated

    kind, content = mutated(random, parsed[random.choice(list(parsed))])
    path = folder / "a.delta.safetensors"
    path.write_bytes(content)
    return kind, path


def _set(random: Random, folder: Path, whole: dict[str, bytes], index: dict[str, Any]) -> tuple[str, Path]:
    """A set with a wrong index, or with a wrong file in it."""
    from mutations import File, index_mutated, mutated
    from paring.delta.files import INDEX

    shards = [name for name in whole if name != INDEX]
    shard, other = random.choice(shards), random.choice(shards)
    action = random.choice(["index", "index", "shard", "missing", "swapped", "other"])
    if action == "index":
        whole[INDEX] = index_mutated(random, index)
    elif action == "shard":
        whole[shard] = mutated(random, File.parse(whole[shard]))[1]
    elif action == "missing":
        del whole[random.choice(list(whole))]
    elif action == "swapped":
        whole[shard] = whole[other]
    else:
        whole[shard] = random.choice(list(GOLDEN.glob("*.delta.safetensors"))).read_bytes()
    path = folder / "set.delta"
    path.mkdir(exist_ok=True)
    for old in path.iterdir():
        if old.name not in whole:
            old.unlink()
    for name, content in whole.items():
        (path / name).write_bytes(content)
    return f"set, {action}", path


def _too_long(*_: object) -> None:
    raise _TooLongError(f"more than {SECONDS} s of processor time")


if __name__ == "__main__":
    folder, seed, *number = sys.argv[1:]
    sys.exit(main(Path(folder), int(seed), int(number[0]) if number else None))
