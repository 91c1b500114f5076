"""The table of merge methods in ``docs/fuse.md``, from the registry: ``python -m paring.fuse.table``."""

from paring.fuse.method import REQUIRED, Method, Parameter
from paring.fuse.registry import METHODS


def markdown() -> str:
    """A row for each method: what it does, its paper, how many models, parameters with defaults and ranges."""
    head = "| method | what it keeps | from | models | base | parameters |\n|---|---|---|---|---|---|\n"
    return head + "".join(_row(how) for how in METHODS.values())


def _row(how: Method) -> str:
    most = how.max_models
    models = (
        f"{how.min_models} or more" if most is None else str(most) if most == how.min_models else f"{how.min_models} to {most}"
    )
    parameters = "; ".join(_parameter(p) for p in how.parameters) or "none"
    scope = "; `scope: global`" if "global" in how.scopes else ""
    return f"| `{how.name}` | {how.about} | {how.paper} | {models} | {how.base} | {parameters}{scope} |\n"


def _parameter(p: Parameter) -> str:
    default = {REQUIRED: "required", None: "none"}.get(p.default, str(p.default).lower())  # type: ignore[arg-type]
    bounds = f" in {p.range.rsplit(' in ', 1)[1]}" if " in " in p.range else ""
    return f"`{p.name}`{'*' if p.per_model else ''} {default}{bounds}"


if __name__ == "__main__":
    print(markdown(), end="")
