"""The Hugging Face hub's local cache, looked into by its layout alone: no network, no huggingface_hub.

CACHE/models--ORG--NAME/refs/REVISION             the commit that a branch or tag stood at when it was fetched
CACHE/models--ORG--NAME/snapshots/COMMIT/FILE     a link into …/blobs
"""

import os
import re
from pathlib import Path

_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
_DEFAULT = "main"


def hub_cache() -> Path:
    """Where the hub's own tools keep what they fetch, by the variables they read."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def snapshot(name: str) -> Path:
    """The folder of ``org/name[@revision]``, the revision being a branch, a tag or a whole commit.

    Raises:
        FileNotFoundError: it is no such name, or not in the cache; the message says how to fetch it.
    """
    found = _NAME.fullmatch(name)
    parts = name.replace("@", "/").split("/")
    if found is None or not all(parts) or {".", ".."} & set(parts):
        raise FileNotFoundError(f"there is no file or folder {name}, and it is no name on the hub either (org/name[@revision])")
    repo, revision = found["repo"], found["revision"] or _DEFAULT
    folder = hub_cache() / ("models--" + repo.replace("/", "--"))
    there = folder / "snapshots" / _commit(folder, revision)
    if there.is_dir():
        return there
    fetch = f"hf download {repo}" + (f" --revision {found['revision']}" if found["revision"] else "")
    cached = sorted(p.name for p in (folder / "snapshots").glob("*")) if folder.is_dir() else []
    instead = f" (of {repo} it holds {', '.join(cached[:5])})" if cached else ""
    raise FileNotFoundError(
        f"there is no file or folder {name}, and the hub's cache {folder.parent} lacks its revision {revision!r}{instead}; "
        f"fetch it with: {fetch}"
    )


def is_snapshot(folder: Path) -> bool:
    """Whether files in ``folder`` may be links into the cache's blobs."""
    return folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()


def blobs(folder: Path) -> Path:
    return folder.parent.parent / "blobs"


def _commit(folder: Path, revision: str) -> str:
    """What a branch or tag stood at; a revision that is neither is taken for a commit."""
    try:
        commit = (folder / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    # The name of one folder: nothing in the cache leads out of it. "-" names none.
    return commit if re.fullmatch(r"[\w-]+", commit, re.ASCII) else "-"
