"""The digits: splits, shifted tasks, the training loop, the pretrained model and its cache."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paring.files import write_bytes
from paring.tasks.digits import SHIFTS, Examples, accuracy, cache, fit, load_splits, named_shifts, pretrained, vit
from paring.tasks.digits.data import SPLIT_SIZES, stratified_order
from paring.tasks.digits.training import _batches
from paring.tasks.extras import require

NUMBERED = torch.arange(64.0).reshape(1, 1, 8, 8)


class Plain(nn.Module):
    """A linear classifier that is called as a vision transformer is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(pixel_values.flatten(1)))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A few steps of a small model gain nothing from more, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "paring"


# Splits.


def test_splits_share_no_row_and_leave_none_out() -> None:
    splits = load_splits()
    rows = torch.cat([examples.rows for examples in splits.values()])
    assert rows.sort().values.equal(torch.arange(1797))
    assert {name: len(examples) for name, examples in splits.items()} == SPLIT_SIZES
    assert SPLIT_SIZES["calibration"] == 256


def test_splits_have_the_digits_in_proportion() -> None:
    splits = load_splits()
    whole = torch.cat([examples.labels for examples in splits.values()]).bincount()
    for examples in splits.values():
        assert (examples.labels.bincount() - whole * len(examples) / 1797).abs().max() <= 1


def test_images_and_labels_are_those_of_their_rows() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for examples in load_splits().values():
        assert examples.images.equal(torch.tensor(digits.images[examples.rows]).float().unsqueeze(1) / 8 - 1)
        assert examples.labels.equal(torch.tensor(digits.target[examples.rows]))
        assert (examples.images.min(), examples.images.max()) == (-1, 1)


def test_stratified_order_is_even_everywhere_and_seeded() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2])
    order = stratified_order(labels, seed=3)
    assert order.sort().values.equal(torch.arange(81))
    for start in range(71):
        assert abs(int((labels[order[start : start + 10]] == 0).sum()) - 500 / 81) < 2
    assert order.equal(stratified_order(labels, seed=3))
    assert not order.equal(stratified_order(labels, seed=4))


# Tasks.


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_is_pure_and_takes_each_image_by_itself(name: str) -> None:
    test = load_splits()["test"]
    before = test.images.clone()
    shifted = SHIFTS[name](test)
    assert test.images.equal(before)
    assert shifted.images.equal(SHIFTS[name](test).images)
    assert shifted.images[7:8].equal(SHIFTS[name].images(test.images[7:8]))
    assert shifted.images.shape == test.images.shape and shifted.images.dtype == torch.float32
    assert shifted.images.min() >= -1 and shifted.images.max() <= 1
    assert shifted.rows.equal(test.rows)
    assert not (shifted.images == test.images).flatten(1).all(1).any()


def test_turned() -> None:
    image = SHIFTS["turned"].images(NUMBERED)[0, 0]
    assert image[0].tolist() == [-7, -15, -23, -31, -39, -47, -55, -63]  # the last column, from the top, now on top
    assert image[7, 0] == 0


def test_checkered_undoes_itself() -> None:
    image = SHIFTS["checkered"].images(NUMBERED)
    assert image[0, 0, 0].tolist() == [0, 1, -2, -3, 4, 5, -6, -7]
    assert image[0, 0, 2].tolist() == [-16, -17, 18, 19, -20, -21, 22, 23]
    assert SHIFTS["checkered"].images(image).equal(NUMBERED)


def test_scrambled_moves_whole_patches() -> None:
    def patches(image: Tensor) -> list[tuple[float, ...]]:
        corners = [(i, j) for i in range(0, 8, 2) for j in range(0, 8, 2)]
        return [tuple(image[0, 0, i : i + 2, j : j + 2].flatten().tolist()) for i, j in corners]

    before, after = patches(NUMBERED), patches(SHIFTS["scrambled"].images(NUMBERED))
    assert set(before) == set(after)
    assert sum(a == b for a, b in zip(before, after, strict=True)) <= 3


def test_outlined() -> None:
    image = torch.full((1, 1, 8, 8), -1.0)
    assert SHIFTS["outlined"].images(image).equal(image)
    image[..., 3] = 1
    expected = torch.full((1, 1, 8, 8), -1.0)
    expected[..., 3:5] = 1
    assert SHIFTS["outlined"].images(image).equal(expected)


def test_unwoven_parts_even_from_odd_and_renames() -> None:
    image = SHIFTS["unwoven"].images(NUMBERED)[0, 0]
    assert image[0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert image[4].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]
    assert SHIFTS["unwoven"].labels(torch.arange(10)).tolist() == list(range(9, -1, -1))


def test_the_other_shifts_keep_the_labels() -> None:
    labels = torch.arange(10)
    assert [name for name, shift in SHIFTS.items() if not shift.labels(labels).equal(labels)] == ["unwoven"]


def test_named_shifts() -> None:
    assert [shift.name for shift in named_shifts()] == list(SHIFTS)
    assert [shift.name for shift in named_shifts(["unwoven", "turned"])] == ["unwoven", "turned"]
    for wrong, got in ((["turn"], "'turn'"), ([], r"\(\)"), (["turned", "turned"], r"\('turned', 'turned'\)")):
        with pytest.raises(ValueError, match=f"tasks: got {got}; expected one or more, each once, of turned, checkered"):
            named_shifts(wrong)


# Training and scoring.


def test_accuracy_counts_and_puts_the_mode_back() -> None:
    model = Plain().train()
    images, labels = torch.randn(7, 1, 8, 8), torch.zeros(7, dtype=torch.int64)
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.copy_(torch.arange(10.0))
    labels[[1, 4, 6]] = 9
    assert accuracy(model, images, labels, batch_size=2) == 3 / 7
    assert model.training
    for wrong in (labels[:0], labels[:5]):
        with pytest.raises(ValueError, match=f"7 images, {len(wrong)} labels"):
            accuracy(model, images, wrong)


def test_fit_learns_and_watches_what_it_says() -> None:
    train = load_splits()["train"]
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model, stepped = Plain(), []
        history = fit(
            model,
            model.parameters(),
            train,
            steps=60,
            rate=1e-2,
            seed=seed,
            after_step=lambda stepped=stepped, model=model: stepped.append(model.layer.weight.grad is not None),
            watch=lambda model=model: accuracy(model, train.images, train.labels),
        )
        assert [step for step, _ in history.curve] == [0, 25, 50, 60]
        assert history.curve[0][1] < 0.3 < 0.8 < history.curve[-1][1]
        assert stepped == [True] * 60  # called before the gradients are cleared
        models.append(model)
    assert models[0].layer.weight.equal(models[1].layer.weight)
    assert not models[0].layer.weight.equal(models[2].layer.weight)
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        fit(model, model.parameters(), train, steps=0, rate=1e-2, seed=0)


@pytest.mark.parametrize(("count", "size", "a_pass"), [(10, 3, 3), (9, 3, 3), (2, 3, 1), (1, 1, 1)])
def test_batches_take_each_row_at_most_once_a_pass(count: int, size: int, a_pass: int) -> None:
    batches = _batches(count, size, torch.Generator().manual_seed(0))
    for _ in range(3):
        rows = torch.cat([next(batches) for _ in range(a_pass)])
        assert len(rows) == len(rows.unique()) == a_pass * min(size, count)


# The pretrained model.


def test_same_seed_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    model = pretrained(0, steps=2)
    assert torch.get_rng_state().equal(state)
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 0.5e6
    (first,) = folder.iterdir()
    pretrained(1, steps=2)
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    pretrained(0, steps=2)
    (second,) = (tmp_path / "second" / "paring").iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_cache_saves_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pretrained(0, steps=2).state_dict()
    monkeypatch.setattr(vit, "fit", None)
    kept = pretrained(0, steps=2).state_dict()
    assert all(made[name].equal(kept[name]) for name in made)
    with pytest.raises(TypeError):
        pretrained(0, steps=3)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _other(path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "said"), [(_cut, ""), (_empty, ""), (_flip, "bytes have changed"), (_other, "tensors are not the model's")]
)
def test_a_corrupt_file_is_made_again(damage: object, said: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    pretrained(0, steps=1)
    (path,) = folder.iterdir()
    sound = path.read_bytes()
    damage(path)  # type: ignore[operator]
    assert path.read_bytes() != sound
    capsys.readouterr()
    model = pretrained(0, steps=1)
    printed = capsys.readouterr().out
    assert f"the cached weights in {path} are corrupt" in printed and said in printed and "making them again" in printed
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert path.read_bytes() == sound
    assert all(tensor.equal(load_file(path)[name]) for name, tensor in model.state_dict().items())


def test_a_cache_that_cannot_be_written_costs_a_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    folder.write_text("a file where the folder should be")
    pretrained(0, steps=1)
    assert "the weights could not be kept" in capsys.readouterr().out


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.home() / ".cache" / "paring"
    for value, expected in (("/elsewhere", Path("/elsewhere/paring")), ("", home), ("relative", home)):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder() == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == home


def test_the_digest_sees_names_shapes_and_bits() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    same = {"b": torch.ones(1), "a": torch.zeros(2, 3)}
    assert cache.digest(weights) == cache.digest(same)
    others = [
        {"a": torch.zeros(3, 2)},
        {"a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"c": torch.ones(1)},
    ]
    assert len({cache.digest(w) for w in (weights, *(weights | other for other in others))}) == 5


def test_the_noise_of_pretraining_is_seeded() -> None:
    images = load_splits()["train"].images[:50]
    worn = [vit._worn(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert worn[0].shape == images.shape
    assert worn[0].equal(worn[1]) and not worn[0].equal(worn[2])


def test_some_images_are_moved_by_one_pixel_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "_NOISE", 0.0)
    image = torch.full((1, 1, 8, 8), -1.0)
    image[..., 4, 4] = 1
    worn = vit._worn(image.repeat(500, 1, 1, 1), torch.Generator().manual_seed(0))
    places = (worn[:, 0] == 1).nonzero()[:, 1:]
    assert len(places) == 500
    assert (places - 4).abs().max() == 1
    assert 0.1 < (places != 4).any(1).float().mean() < 0.3


# Files and optional packages.


def test_a_write_cut_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("cut off")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cut off"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ImportError, match=r"a walk needs the package 'no_such_package', .*: pip install 'paring\[train,plot\]'"
    ):
        require("no_such_package.part", "a walk")
    (tmp_path / "broken_package.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        require("broken_package", "a walk")


def test_examples_are_frozen() -> None:
    examples = load_splits()["test"]
    with pytest.raises(AttributeError):
        examples.labels = examples.labels  # type: ignore[misc]
    assert isinstance(replace(examples, labels=examples.labels), Examples)
