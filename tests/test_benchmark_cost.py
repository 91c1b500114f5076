"""The cost benchmark on tiny sizes: what it counts, what it writes, that it continues. No time is judged."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

pytest.importorskip("peft")
pytest.importorskip("transformers")

BLOCKS, WIDTH, INNER, RANK = 3, 32, 64, 8
BERT_LAYERS = [(WIDTH, WIDTH)] * 4 * BLOCKS + [(INNER, WIDTH), (WIDTH, INNER)] * BLOCKS + [(WIDTH, WIDTH)]  # [out, in]
HEAD = 2 * WIDTH + 2


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from transformers.utils import logging

    import tune_cost

    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other make tiny steps slow on a busy machine
    yield tune_cost
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)


def run(bench: ModuleType, out: Path, *options: str, model: str = "bert-mini") -> dict:
    defaults = ["--tiny", "--device", "cpu", "--repeats", "1", "--out", str(out), "--models", model]
    assert bench.main([*defaults, *(options or ("--rounds", "2"))]) == 0
    return json.loads((out / f"tune_cost_{model}.json").read_text())


def test_counts_what_every_method_holds(bench: ModuleType, tmp_path: Path) -> None:
    record = run(bench, tmp_path)
    sizes = record["sizes"]
    assert list(sizes) == list(bench.METHODS)
    assert record["not_applicable"] == {}

    entries = {
        "floor": WIDTH,
        "column": sum(RANK * out for out, _ in BERT_LAYERS),
        "row": sum(RANK * inp for _, inp in BERT_LAYERS),
        "lora": sum(RANK * (out + inp) for out, inp in BERT_LAYERS),
        "shira": sum(RANK * (out + inp) for out, inp in BERT_LAYERS),
        "miss": sum(RANK * out for out, _ in BERT_LAYERS),
        "ln": 2 * WIDTH * (2 * BLOCKS + 1),
    }
    for method, count in entries.items():
        assert sizes[method]["num_trainable"] == count + HEAD, method
        assert sizes[method]["trained_bytes"] == sizes[method]["gradient_bytes"] == 4 * (count + HEAD), method
    upper = [*BERT_LAYERS[:4], (INNER, WIDTH), (WIDTH, INNER), (WIDTH, WIDTH)]  # the last block and the pooler
    assert sizes["window"]["num_trainable"] == sum(RANK * out for out, _ in upper) + HEAD
    assert sizes["window"]["gradient_bytes"] == 4 * sizes["window"]["num_trainable"]

    for method in ("floor", "full", "ln"):
        # Two moments and a step counter a tensor; LN-tuning and PEFT's head are copies, the others train in place.
        counters = sizes[method]["optimizer_bytes"] - 2 * sizes[method]["trained_bytes"]
        assert 0 < counters < 1000, method
        times = 4 if method == "ln" else 3
        assert sizes[method]["resident_bytes"] == times * sizes[method]["trained_bytes"] + counters, method
    for method in ("column", "row"):
        counters = 4 * (len(BERT_LAYERS) + 2)
        positions = 8 * RANK * len(BERT_LAYERS)
        slices = 4 * entries[method]
        assert sizes[method]["optimizer_bytes"] == 2 * sizes[method]["trained_bytes"] + counters
        assert sizes[method]["resident_bytes"] <= 4 * slices + 3 * 4 * HEAD + counters + positions

    saved = {method: s["saved_bytes"] for method, s in sizes.items()}
    assert saved["window"] < saved["column"] < saved["row"] < saved["full"] < saved["dora"]


def test_the_record_holds_times_settings_and_verdicts(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(bench, tmp_path, "--methods", "floor,column,window,lora,ia3", "--rounds", "3", model="bert-base")
    assert [list(r) for r in record["rounds"]] == [["floor", "column", "window", "lora", "ia3"]] * 3
    assert all(seconds > 0 for r in record["rounds"] for seconds in r.values())
    assert record["summary"]["floor"]["ratio_to_floor"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    by_round = sorted(r["column"] / r["lora"] for r in record["rounds"])
    assert record["summary"]["column"]["ratio_to_lora"]["median"] == by_round[1]
    assert set(record["moves"]["column"]) == {"session_step_s", "move_s", "step_with_move_s"}
    assert all(len(v) == 1 for v in (*record["moves"]["window"].values(), *record["enter_and_leave"]["column"].values()))
    assert record["settings"]["rounds"] == 3
    assert record["settings"]["tiny"]
    assert set(record["versions"]) == {"python", "torch", "transformers", "peft", "paring"}
    assert record["hardware"]["threads"] == torch.get_num_threads()

    verdicts = {v["what"]: v for v in record["verdicts"]}
    assert verdicts["row: step / floor"]["met"] is None  # not among the methods
    assert verdicts["row: step / floor"]["missing"] == "row"
    assert verdicts["entering and leaving, s"]["limit"] == 0.2
    for v in verdicts.values():
        assert v["met"] == (None if v["value"] is None else v["value"] <= v["limit"])

    assert [p.name for p in tmp_path.iterdir()] == ["tune_cost_bert-base.json"]
    capsys.readouterr()
    assert bench.main(["--table", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "| LoRA, r 8 |" in table
    assert "row: step / floor: not measured (no row)" in table


@pytest.mark.parametrize("model", ["llama", "vit-s"])
def test_other_families(bench: ModuleType, tmp_path: Path, model: str) -> None:
    record = run(bench, tmp_path, "--rounds", "1", model=model)
    assert list(record["sizes"]) == list(bench.METHODS)
    head = HEAD if model == "vit-s" else 0
    per_block = 4 * (2 * WIDTH) + (3 if model == "llama" else 2) * (WIDTH + INNER)
    assert record["sizes"]["lora"]["num_trainable"] == RANK * per_block * BLOCKS + head
    assert record["sizes"]["floor"]["num_trainable"] == WIDTH + head


def test_a_stopped_run_continues(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--methods", "floor,window", "--rounds", "3", "--warmup", "1")
    steps, step = [], bench.measure.step

    def stops(*args: object) -> float:
        steps.append(args)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(bench.measure, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(bench, tmp_path, *options)
    partial = tmp_path / "tune_cost_bert-mini.partial.json"
    first = json.loads(partial.read_text())["rounds"]
    assert len(first) == 1
    record = run(bench, tmp_path, *options)
    assert record["rounds"][:1] == first
    assert len(record["rounds"]) == 3
    assert not partial.exists()

    assert run(bench, tmp_path, *options) == record  # finished: skipped
    assert run(bench, tmp_path, *options, "--again")["rounds"] != record["rounds"]


def test_a_partial_record_of_another_run_is_not_continued(bench: ModuleType, tmp_path: Path) -> None:
    settings = bench.Settings(("floor",), 2, 1, 1, "cpu", "fp32", True, 1)
    path = bench.record.path_of(tmp_path, "llama", settings)
    fresh = bench.record.new("llama", "Llama", settings)
    bench.record.save_partial(path, fresh | {"rounds": [{"floor": 1.0}]})
    assert bench.record.resume(path, fresh)["rounds"] == [{"floor": 1.0}]
    other = bench.record.new("llama", "Llama", bench.Settings(("floor",), 3, 1, 1, "cpu", "fp32", True, 1))
    assert bench.record.resume(path, other)["rounds"] == []


def test_a_pair_that_peft_refuses_is_recorded(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such layer")

    monkeypatch.setitem(bench.METHODS, "ia3", refuse)
    record = run(bench, tmp_path, "--methods", "floor,ia3", "--rounds", "1")
    assert record["not_applicable"] == {"ia3": "ValueError: no such layer"}
    assert list(record["sizes"]) == ["floor"]
    assert "not applicable: ValueError: no such layer" in capsys.readouterr().out
    monkeypatch.setitem(bench.METHODS, "column", refuse)  # ours never is
    with pytest.raises(ValueError, match="no such layer"):
        run(bench, tmp_path, "--methods", "column", "--rounds", "1", "--again")


def test_models_draw_no_random_numbers_and_come_out_alike(bench: ModuleType) -> None:
    for workload in bench.WORKLOADS.values():
        models = [workload.model(True, "cpu", torch.float32) for _ in range(2)]
        batch = workload.batch(True, "cpu", torch.float32)
        first, *others = [model(**batch).loss.item() for model in models * 2]
        assert others == [first] * 3, workload.name


def test_saved_bytes_are_counted_once_and_without_parameters_and_batch(bench: ModuleType) -> None:
    layer = nn.Linear(4, 5)
    x = torch.randn(3, 4, requires_grad=True)
    batch = torch.randn(3, 5)
    saved = bench.measure._Saved(layer, {"pixel_values": batch})
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        y = layer(x)  # keeps x, and the weight as a transposed view
        z = y * y.t().t() * batch  # keeps y's storage twice, the product's, and the batch
    assert z.requires_grad
    assert bench.measure.total_bytes(saved.storages) == 4 * (x.numel() + y.numel())


def test_storages_of_sparse_tensors(bench: ModuleType) -> None:
    values = torch.ones(2)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), values, (9, 9), check_invariants=True)
    assert bench.measure.total_bytes(bench.measure.storages([sparse])) == 2 * 2 * 8 + 2 * 4


def test_unknown_names_are_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--models", "bert-huge"])
    assert "unknown: bert-huge; there are bert-mini, bert-base, llama, vit-s" in capsys.readouterr().err
