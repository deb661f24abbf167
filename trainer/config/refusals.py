"""What Hydra and OmegaConf find wrong, and what they let pass, told as every other mistake.

They tell it in several shapes, over the error and its cause, with advice that is wrong here.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.errors import UserError

_HELP = "correct it; --help lists all fields"
_NO_CHOICE = r"In '.+?': Could not find '(.+)/(.+?)' Available options in '.+?': (.*?) Config search"
_WRONG_TYPE = r"Error merging override ([^=]+)=(.*?) (Value .*|Cannot .*|Invalid type .*|field .*)"
_NOISE = ("To append", "Set the env", "full_key:", "reference_type=", "object_type=", "See https://hydra.cc")


def explained(error: Exception) -> str:
    """One line, from what Hydra, OmegaConf or PyYAML raised."""
    told = [str(each) for each in (error, error.__cause__) if each is not None]
    lines = [line.strip() for text in told for line in text.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if line and not line.startswith(_NOISE)))
    text, full_key = " ".join(kept), re.search(r"full_key: (\S+)", "\n".join(lines))
    if found := re.match(_NO_CHOICE, text):
        group, value, options = found.groups()
        names = [name for name in options.split() if not name.endswith("_schema")]
        return str(UserError(group, value, "one of " + ", ".join(names), f"set {group}={_nearest(value, names)}"))
    if found := re.search(r"Key '(.+?)' (?:is )?not in '?(\w+)'?", text):
        key, kind = found.groups()
        field, place = full_key[1] if full_key else key, re.match(r"In '.+?': ", text)
        unknown = f"{_where(kind)} has no field {key}. Remedy: {_other_name(key, kind)}."
        return f"{place[0] if place else ''}{field}: {unknown}"
    if found := re.match(_WRONG_TYPE, text):
        field, value, reason = found.groups()
        return str(UserError(full_key[1] if full_key else field, value, f"another type ({reason})", _HELP))
    if found := re.match(r"Error parsing override '(.*)' missing EQUAL", text):
        return f"{found[1]}: expected field=value. Remedy: {_HELP}."
    if type(error).__name__ == "OverrideParseException":
        remedy = "put what has brackets, commas, blanks or = into quotes of its own, as in \"data.dir='a=b'\""
        return f"an override cannot be read: {text}. Remedy: {remedy}."
    return text


def check_values(config: DictConfig) -> None:
    """Looks for what fits a field's type and is no value of any field.

    Raises:
        UserError: a number that is not finite or has more than 64 bits, an empty text, or a list in a list of others.
    """
    for name, value in cast(dict[str, Any], OmegaConf.to_container(config)).items():
        _check(name, value)


def _check(field: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(f"{field}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, list):
                raise UserError(field, value, "a list of single values", f"write it as {field}=[a,b]")
            _check(f"{field}[{number}]", inner)
    else:
        _check_single(field, value)


def _check_single(field: str, value: object) -> None:
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise UserError(field, value, "a number that is finite", "give one; --help says what the field means")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(field, value, "a number of at most 64 bits", "give a smaller one")
    if isinstance(value, str) and not value.strip():
        raise UserError(field, repr(value), "text", f"give some, or {field}=null where --help allows it")


def _where(kind: str) -> str:
    return "this kind of data" if kind == "struct" else kind


def _other_name(key: str, kind: str) -> str:
    """The field of a dataclass of the config that is spelled most alike."""
    import trainer.config as configs

    names = [*getattr(getattr(configs, kind, None), "__dataclass_fields__", ())]
    near = get_close_matches(key, names, n=1)
    return f"{near[0]} is meant? --help lists all fields" if near else _HELP


def _nearest(value: str, names: Sequence[str]) -> str:
    return (get_close_matches(value, names, n=1, cutoff=0) or names)[0]
