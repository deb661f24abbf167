"""What `--help` tells: every field, with its value and what is written below its declaration."""

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

_WIDTH = 110


def documented_fields(*, _root_: DictConfig) -> str:
    """Each field of a command's config, as composed with its overrides; a resolver for hydra.help.template."""
    names = [str(name) for name in _root_ if name != "hydra"]
    lines = [line for name in names for line in _lines(_root_, name, name)]
    return "\n".join(lines).replace("$", "$$")  # Hydra puts its own texts in by string.Template


def _lines(parent: DictConfig, name: str, path: str) -> list[str]:
    kind, node = OmegaConf.get_type(parent), parent._get_node(name)
    documentation = documentation_of(kind).get(name, "") if is_dataclass(kind) else ""
    below = OmegaConf.get_type(node)
    if isinstance(node, DictConfig) and is_dataclass(below) and not node._is_none() and is_dataclass(kind):
        about = documentation or _first_line(below)
        names = [str(part) for part in node]
        below_it = (line for part in names for line in _lines(node, part, f"{path}.{part}"))
        return ["", f"{path}: {about}", *below_it]
    value = "???  (has no default)" if OmegaConf.is_missing(parent, name) else _as_typed(parent[name])
    return [
        f"  {path}={value}",
        *textwrap.wrap(documentation, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _as_typed(value: Any) -> str:
    """As an override on the command line has it."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    match plain:
        case None:
            return "null"
        case bool():
            return str(plain).lower()
        case dict():
            return "{" + ", ".join(f"{name!s}: {_as_typed(part)}" for name, part in plain.items()) + "}"
        case list():
            return "[" + ", ".join(map(_as_typed, plain)) + "]"
        case _:
            return str(plain)


@cache
def documentation_of(kind: type) -> dict[str, str]:
    """The string below each field's declaration, of a dataclass and those that it extends."""
    found: dict[str, str] = {}
    for declared in reversed(kind.__mro__):
        if not is_dataclass(declared):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(declared))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                    found[name] = " ".join(told.split())
    return found


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").splitlines()[0]
