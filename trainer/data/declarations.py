"""The checks of declared features that need no data."""

import re
from typing import get_args

from trainer.checks import require_one_of, require_positive
from trainer.config import FeatureConfig
from trainer.data.schema import RESERVED_COLUMNS, VectorType, weight_column
from trainer.data.text_model import find_model
from trainer.data.weights import check_weighting
from trainer.errors import UserError

KINDS = ("id", "categorical", "numeric", "vector", "text", "hour", "weekday", "history", "audience")
MAX_BUCKETS = 2**31 - 2  # rows are int32, and row 0 is taken

# Settings that only some kinds take: elsewhere they would do nothing.
_TAKEN_BY = {
    "hash_buckets": ("id", "categorical"),
    "max_values": ("categorical",),
    "weight_column": ("categorical",),
    "weighting": ("categorical",),
    "dtype": ("vector", "text"),
    "encoder": ("text",),
}

_SIDES = {"hour": "query", "weekday": "query", "history": "query", "audience": "candidate"}


def check_declarations(features: dict[str, FeatureConfig]) -> None:
    """Raises a UserError for a feature that is misdeclared, whatever the source has."""
    _check_names(features)
    for name, feature in features.items():
        where = f"data.features.{name}"
        _check_settings(where, feature)
        _check_hashed(where, feature)
        check_weighting(where, feature)
        _check_encoder(where, feature)
        side = _SIDES.get(feature.kind, feature.side)
        if feature.side != side:
            expected = f"{side} for kind {feature.kind}"
            raise UserError(f"{where}.side", feature.side, expected, f"set {where}.side={side}")
    ids = [name for name, feature in features.items() if (feature.side, feature.kind) == ("candidate", "id")]
    if len(ids) != 1:
        raise UserError("data.features", ids, "exactly one id on the candidate side, that of the item",
                        "declare item_id: {side: candidate, kind: id}, others as categorical")  # fmt: skip
    if features[ids[0]].optional:
        raise UserError(f"data.features.{ids[0]}.optional", True, "false: the item id is always there", "remove it")
    for kind in ("history", "audience"):
        named = [name for name, feature in features.items() if feature.kind == kind]
        if len(named) > 1:
            raise UserError("data.features", named, f"at most one {kind}", "remove the others")
        if kind == "audience" and named and not any(is_user_id(name, feature) for name, feature in features.items()):
            raise UserError(f"data.features.{named[0]}.kind", kind, "the id of the query's user, whose table it shares",
                            "declare user_id: {side: query, kind: id}")  # fmt: skip


def is_user_id(name: str, feature: FeatureConfig) -> bool:
    """Whether a feature is the id of the query's user."""
    return (feature.side, feature.kind, feature.column or name) == ("query", "id", "user_id")


def _check_names(features: dict[str, FeatureConfig]) -> None:
    weights = {weight_column(name): name for name, feature in features.items() if feature.weight_column is not None}
    for name in features:
        where, remedy = f"data.features.{name}", "rename the feature and set its column"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(where, name, "a name of letters, digits and underscores", remedy)
        if name in RESERVED_COLUMNS:
            raise UserError(where, name, "a name other than " + ", ".join(RESERVED_COLUMNS), remedy)
        if name in weights:
            raise UserError(where, name, f"a name that the weights of {weights[name]} do not have", remedy)


def _check_settings(where: str, feature: FeatureConfig) -> None:
    require_one_of(f"{where}.side", feature.side, ("query", "candidate"))
    require_one_of(f"{where}.kind", feature.kind, KINDS)
    for setting in ("min_count", "dim", "length", "max_values"):
        require_positive(f"{where}.{setting}", getattr(feature, setting))
    require_one_of(f"{where}.dtype", feature.dtype, get_args(VectorType))
    for setting, kinds in _TAKEN_BY.items():
        value = getattr(feature, setting)
        if feature.kind not in kinds and value != getattr(FeatureConfig, setting):
            raise UserError(f"{where}.{setting}", value, f"kind {' or '.join(kinds)} for it, not {feature.kind}",
                            f"remove {where}.{setting}")  # fmt: skip


def _check_hashed(where: str, feature: FeatureConfig) -> None:
    buckets = feature.hash_buckets
    if buckets is not None and not 1 <= buckets <= MAX_BUCKETS:
        raise UserError(f"{where}.hash_buckets", buckets, f"a number from 1 to {MAX_BUCKETS}",
                        f"set {where}.hash_buckets=1000000")  # fmt: skip
    if buckets is not None and feature.min_count != 1:
        raise UserError(f"{where}.min_count", feature.min_count, "1, for hashing counts no values",
                        f"remove {where}.min_count or {where}.hash_buckets")  # fmt: skip


def _check_encoder(where: str, feature: FeatureConfig) -> None:
    if feature.encoder is None:
        return
    if feature.dim != FeatureConfig.dim:
        raise UserError(f"{where}.dim", feature.dim, "no width, for the encoder has its own", f"remove {where}.dim")
    find_model(f"{where}.encoder", feature.encoder)
