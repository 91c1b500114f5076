"""``paring slim`` on deltas as they lie on disks."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paring
from conftest import bert, bits
from paring.cli.main import main
from paring.slim.pruners import prune


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an exact delta of a fine-tune of it."""
    base = bits(bert())
    generator = torch.Generator().manual_seed(0)
    tuned = {n: t + torch.randn(t.shape, generator=generator) * 0.01 for n, t in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    paring.save_delta(paring.diff(base, tuned), tmp_path / "d.delta.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "d.delta.safetensors"


@pytest.mark.parametrize("method", ["magnitude", "rescaled", "dare", "della"])
def test_a_smaller_file(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], method: str) -> None:
    base, delta = made
    out = base.parent / "small.delta.safetensors"
    given = [str(delta), str(out), "--keep", "0.05", "--method", method, "--base", str(base), "--values", "int8"]
    assert main(["slim", *given]) == 0
    said = capsys.readouterr().out
    small, whole = paring.load_delta(out), paring.load_delta(delta, base)
    assert small.facts["method"] == method and small.facts["keep"] == 0.05
    kept = sum(small.change(n).places.count for n in small)
    total = sum(whole[n].numel() for n in whole)
    assert kept == -(-total // 20) if method in ("magnitude", "rescaled") else kept <= 1.05 * total / 20 + len(whole)
    assert f"Kept {kept:,} of {total:,} entries ({method})" in said and f"{out.stat().st_size:,} bytes" in said
    small.apply(bert())
    assert main(["slim", *given]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "keep is 0.0; expected the share of entries kept, in (0, 1]"),
        (["--keep", "1.5"], "keep is 1.5"),
        (["--keep", "0.1", "NOBASE"], "numbers only beside the base; give it with --base"),
    ],
)
def test_bad_input(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    base, delta = made
    with_base = [] if "NOBASE" in arguments else ["--base", str(base)]
    out = base.parent / "small.delta.safetensors"
    assert main(["slim", str(delta), str(out), *with_base, *(a for a in arguments if a != "NOBASE")]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_what_is_said_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The share of the squared norm, counted by hand; and why fewer are kept than asked for."""
    base = {"a": torch.zeros(4, 5), "b": torch.zeros(10)}
    tuned = {"a": torch.zeros(4, 5), "b": torch.tensor([3.0, 0, -4.0, 0, 0, 1.0, 0, 0, 0, 2.0])}
    tuned["a"][1, 2] = 12.0
    delta, out = tmp_path / "d.delta.safetensors", tmp_path / "small.delta.safetensors"
    paring.save_delta(paring.diff(base, tuned), delta)
    save_file(base, tmp_path / "base.safetensors")
    given = ["slim", str(delta), str(out), "--base", str(tmp_path / "base.safetensors"), "--overwrite"]
    assert main([*given, "--keep", "0.1", "--method", "magnitude"]) == 0  # 3 of 30: 12, -4, 3 of 174
    said = capsys.readouterr().out
    assert "Kept 3 of 30 entries (magnitude); in the fine-tune they carry 97.1 % of the difference's squared norm" in said
    assert "What the task loses by it is not known without data" in said
    assert main([*given, "--keep", "0.5"]) == 0
    assert "Kept 5 of 30 entries (rescaled), of 15 asked for: no others differ from the base; " in capsys.readouterr().out
    assert main([*given, "--keep", "0.1", "--method", "dare"]) == 0
    assert re.search(
        r"Kept [0-2] of 30 entries \(dare\), of 3 asked for: the others that were drawn do", capsys.readouterr().out
    )


def test_scores_of_the_fine_tune_are_not_passed_off(tmp_path: Path) -> None:
    base = {"a": torch.zeros(50)}
    paring.save_delta(paring.diff(base, {"a": torch.arange(50.0)}), tmp_path / "d.safetensors", {"scores": {"test": 0.9}})
    save_file(base, tmp_path / "base.safetensors")
    given = ["--base", str(tmp_path / "base.safetensors"), "--keep"]
    assert main(["slim", str(tmp_path / "d.safetensors"), str(tmp_path / "s.safetensors"), *given, "0.5"]) == 0
    assert main(["slim", str(tmp_path / "s.safetensors"), str(tmp_path / "t.safetensors"), *given, "0.1"]) == 0
    for name in "st":
        facts = paring.load_delta(tmp_path / f"{name}.safetensors").facts
        assert facts["scores"] == {} and facts["tuned_scores"] == {"test": 0.9}


OUTPUTS = {  # arguments, and a file that is written
    "a delta for each keep": (["{out}", "--keep", "0.1,0.2"], "keep-0.1.delta.safetensors"),
    "a bank": (["--bank", "{out}", "--keep", "0.1"], "d.delta.safetensors"),
    "a delta": (["{out}", "--keep", "0.1"], ""),
    "a report": (["{other}", "--keep", "0.1", "--report", "{out}"], "slim.json"),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_overwriting_removes_no_work_of_others(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a command wrote is replaced, a folder with anything else is not; and that is said before anything is pruned."""
    base, delta = made
    out, other = base.parent / "out", base.parent / "other.delta.safetensors"
    given, written = OUTPUTS[what]
    command = ["slim", str(delta), *(a.format(out=out, other=other) for a in given), "--base", str(base)]
    assert main(command) == 0, capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0, capsys.readouterr().err
    if written:
        assert (out / written).is_file()
        (out / "thesis.tex").write_text("years of work")
        expected = f"{out} holds thesis.tex, which overwriting it would remove"
    else:
        out.unlink()
        out.mkdir()
        expected = f"{out} is a folder, expected a file or nothing"
    before = sorted(p.name for p in out.iterdir())
    monkeypatch.setattr("paring.recipes.slim.run.try_all", None)
    monkeypatch.setattr("paring.recipes.slim.many.opened", None)
    assert main([*command, "--overwrite"]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == before


def test_an_original_is_not_replaced_by_what_is_left_of_it(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, delta = made
    before = delta.read_bytes()
    more = ["--base", str(base), "--overwrite", "--keep"]
    assert main(["slim", str(delta), str(delta), *more, "0.1"]) == 2
    assert "is the delta that is made small" in capsys.readouterr().err
    folder = delta.parent / "deltas"
    folder.mkdir()
    kept = [folder / "a.delta.safetensors", folder / "b.delta.safetensors"]
    for path in kept:
        path.write_bytes(before)
    assert main(["slim", str(delta), str(folder), *more, "0.1,0.02"]) == 2
    assert "holds a.delta.safetensors, b.delta.safetensors, which overwriting it would remove" in capsys.readouterr().err
    assert all(path.read_bytes() == before for path in (delta, *kept))


def test_what_is_written_goes_to_different_places(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, delta = made
    out = base.parent / "out"
    for report in (out, out / "report"):
        assert main(["slim", str(delta), str(out), "--base", str(base), "--keep", "0.1,0.2", "--report", str(report)]) == 2
        assert "are one place, or one lies in the other; expected two" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_but_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bits(bert())
    save_file(base, tmp_path / "base.safetensors")
    paring.save_delta(paring.diff(base, {**base, "head.weight": torch.ones(2, 3)}), tmp_path / "d.delta.safetensors")
    out = tmp_path / "out.delta.safetensors"
    assert main(["slim", str(tmp_path / "d.delta.safetensors"), str(out), "--keep", "0.1"]) == 2
    assert "nothing but new tensors (head.weight) differs from the base: there is nothing to prune" in capsys.readouterr().err
    assert not out.exists()


def test_values_too_small_for_their_type_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"w": torch.ones(100)}
    save_file(base, tmp_path / "base.safetensors")
    paring.save_delta(0.1 * paring.diff(base, {"w": base["w"] + 1e-6 * torch.arange(100)}), tmp_path / "d.delta.safetensors")
    tiny = paring.load_delta(tmp_path / "d.delta.safetensors") * 1e-3
    paring.save_delta(tiny, tmp_path / "tiny.delta.safetensors", values="fp32")
    given = ["slim", str(tmp_path / "tiny.delta.safetensors"), "--keep", "0.5", "--method", "magnitude"]
    assert main([*given[:2], str(tmp_path / "a.delta.safetensors"), *given[2:]]) == 0
    said = capsys.readouterr().out
    assert "magnitude, keep 0.5: 50 of 50 values are too small for fp16 and are 0 in the file; --values bf16 or fp32" in said
    assert main([*given[:2], str(tmp_path / "b.delta.safetensors"), *given[2:], "--values", "bf16"]) == 0
    assert "too small" not in capsys.readouterr().out


def test_facts_of_an_earlier_pruning_do_not_stay(made: tuple[Path, Path]) -> None:
    base, delta = made
    small = prune(paring.load_delta(delta, base), "dare", 0.1)
    assert {"seed", "scope"} <= small.facts.keys()
    again = prune(small, "magnitude", 0.5, scope="tensor")
    assert "seed" not in again.facts and (again.facts["method"], again.facts["keep"]) == ("magnitude", 0.5)
