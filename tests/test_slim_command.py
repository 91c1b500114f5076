"""``paring slim`` on deltas as they lie on disks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paring
from conftest import bert, bits
from paring.cli.main import main


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
