"""A validation split cut off the train split, and rows that stand in both. Pure; rows are known by keys of their inputs.

Rows whose inputs are identical go to the same side together. The share is kept label by label as far as rows can be
divided, and no label leaves the train split. Which rows are taken depends on the seed and the inputs, not on their order.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b


def hold_out(keys: Sequence[bytes], labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides rows into those that stay and those held out, each in the order given.

    Args:
        keys: of the rows' inputs; equal for identical ones.
        labels: of the rows; as many. Rows without labels have all the same.
        share: of the rows to be held out, in (0, 1); at least one row is.
        seed: of the choice.

    Raises:
        ValueError: a share outside of (0, 1); or nothing can be held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation is {share}; expected a share of the rows, more than 0 and less than 1")
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    by_label: dict[str, list[bytes]] = defaultdict(list)
    for key in sorted(groups, key=lambda key: _hash(key, seed)):
        by_label[labels[groups[key][0]]].append(key)
    places = []
    for label, its_keys in by_label.items():
        offset = int.from_bytes(_hash(label.encode(), seed)[:4], "big") / 2**32  # else every label would give its first
        places += [((rank + offset) / len(its_keys), _hash(key, seed), key) for rank, key in enumerate(its_keys)]
    staying = Counter(labels)
    wanted = max(1, round(share * len(keys)))
    held: set[int] = set()
    for _, _, key in sorted(places):
        if len(held) >= wanted:
            break
        leaving = Counter(labels[row] for row in groups[key])
        if all(staying[label] > count for label, count in leaving.items()):
            staying -= leaving
            held.update(groups[key])
    if not held:
        raise ValueError(
            f"data: no validation split can be cut off {len(keys)} train row(s) of {len(set(labels))} label(s): a label would "
            "have no row left to train on; give more rows or a validation split"
        )
    return [row for row in range(len(keys)) if row not in held], sorted(held)


def num_shared(train: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many rows of ``other`` stand in ``train`` too."""
    known = set(train)
    return sum(key in known for key in other)


def text_key(text: str) -> bytes:
    """The same for texts that differ in case and white space alone."""
    return blake2b(" ".join(text.casefold().split()).encode(errors="surrogatepass"), digest_size=16).digest()


def _hash(content: bytes, seed: int) -> bytes:
    return blake2b(content, digest_size=16, salt=(seed % 2**64).to_bytes(8, "big")).digest()
