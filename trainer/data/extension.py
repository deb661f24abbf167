"""Data that extends a folder prepared earlier: what a model trained on that folder knows keeps its meaning."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.config import FeatureConfig, PreparedConfig
from trainer.data.engine import Connection, first_row, reading
from trainer.data.footers import check_known
from trainer.data.inputs import Input
from trainer.data.parts import scan_parts
from trainer.data.schema import HASHED_WORDS, Feature, read_schema
from trainer.data.text_model import find_model, model_name
from trainer.errors import UserError


@dataclass(frozen=True)
class Extended:
    """The folder that `data.extends` names; without features where it names none."""

    folder: Path = Path()
    features: dict[str, Feature] = field(default_factory=dict)
    """By name."""
    fingerprints: tuple[str, ...] = ()
    """Of the folders that it extends itself, the oldest first, then its own."""

    def check_inputs(self, connection: Connection, inputs: list[Input]) -> list[str]:
        """Compares what the source's columns tell of the features.

        Returns:
            A line for every feature that only one of the two folders has.

        Raises:
            UserError: ids or categories are of another type, or were single values and are lists now.
        """
        if not self.features:
            return []
        for feature in inputs:
            if feature.has_table and feature.name in self.features:
                before = self.features[feature.name]
                now = _in_words(feature.multi_valued, bool(feature.weights))
                self._require_same(feature.name, "", now, _in_words(before.multi_valued, before.weighted))
                if feature.has_vocabulary:
                    self._check_type(connection, feature)
        names = [feature.name for feature in inputs]
        new = [f"feature {name}: new, {self.folder} lacks it" for name in names if name not in self.features]
        gone = [f"feature {name}: left out, though {self.folder} has it" for name in self.features if name not in names]
        return new + gone

    def check_dims(self, features: Iterable[Feature]) -> None:
        """Raises a UserError where vectors have another length than they had."""
        for feature in features:
            if feature.name in self.features:
                self._require_same(feature.name, "", f"dim {feature.dim}", f"dim {self.features[feature.name].dim}")

    def load_vocabulary(self, connection: Connection, feature: Input, table: str) -> int:
        """Makes the engine's table (id, index) of a feature's extended vocabulary, empty where there is none.

        Returns:
            How many values it has.

        Raises:
            UserError: the vocabulary cannot be read or is not the schema's.
        """
        if feature.name not in self.features:
            connection.execute(f"CREATE TABLE {table} (id {feature.value_type.removesuffix('[]')}, index INTEGER)")
            return 0
        path = self._vocabulary(feature.name)
        with reading("data.extends", path):
            connection.execute(f"CREATE TABLE {table} AS SELECT id, index FROM {scan_parts(path)}")
        rows, last = first_row(connection, f"SELECT count(*), coalesce(max(index), 0) FROM {table}")
        declared = self.features[feature.name].num_embeddings - 1
        if not rows == last == declared:
            expected = f"{declared} values, as its schema.json says, not {rows} up to {last}"
            raise UserError("data.extends", path, expected, "prepare that folder anew")
        return rows

    def continued(self, feature: Feature) -> Feature:
        """The feature, standardised as it was, its vocabulary as old as it was."""
        before = self.features.get(feature.name, replace(feature, since=len(self.fingerprints)))
        return replace(feature, mean=before.mean, std=before.std, since=before.since)

    def check_declarations(self, features: dict[str, FeatureConfig]) -> None:
        """Raises a UserError for a feature that is declared other than it was, before any data is read."""
        for name, before in self.features.items():
            if name in features:
                for setting, value, was in _declared(features[name], before):
                    self._require_same(name, f".{setting}", value, was)

    def _check_type(self, connection: Connection, feature: Input) -> None:
        path = self._vocabulary(feature.name)
        with reading("data.extends", path):
            (described,) = connection.execute(f"DESCRIBE SELECT id FROM {scan_parts(path)}").fetchall()
        types = {"BIGINT": "int64", "VARCHAR": "string"}
        now, was = types[feature.value_type.removesuffix("[]")], types.get(described[1], described[1])
        self._require_same(feature.name, "", now, was)

    def _vocabulary(self, name: str) -> Path:
        return self.folder / "vocabulary" / f"{self.features[name].table}.parquet"

    def _require_same(self, name: str, setting: str, value: object, was: object) -> None:
        if value != was:
            raise UserError(f"data.features.{name}{setting}", value, f"{was}, as in data.extends={self.folder}",
                            "keep it, or give the feature another name")  # fmt: skip


def open_extended(config: PreparedConfig) -> Extended:
    """What config.extends names.

    Raises:
        UserError: it is no prepared folder, or one whose features are declared otherwise; or a vocabulary is not that
            which was written.
    """
    if config.extends is None:
        return Extended()
    folder = Path(config.extends)
    try:
        schema = read_schema(folder)
    except UserError as error:
        remedy = "name such a folder, or prepare anew with data.extends=null"
        raise UserError("data.extends", error.value, error.expected, remedy) from None
    features = {feature.name: feature for feature in schema.features}
    extended = Extended(folder, features, (*schema.extends, schema.fingerprint))
    extended.check_declarations(config.features)
    check_known(folder, schema, "vocabulary")
    return extended


def _declared(feature: FeatureConfig, before: Feature) -> list[tuple[str, Any, Any]]:
    """What a declaration alone tells of a feature: setting, value and what it was."""
    stored_as = {"hour": "categorical", "weekday": "categorical"}
    facts: list[tuple[str, Any, Any]] = [
        ("side", feature.side, before.side),
        ("kind", stored_as.get(feature.kind, feature.kind), "text" if before.encoder else before.kind),
    ]
    if before.kind in ("id", "categorical"):
        was = before.num_embeddings - 1 if before.hashed else "null"
        facts.append(("hash_buckets", feature.hash_buckets or "null", was))
    if before.kind == "numeric":
        facts.append(("log1p", feature.log1p, before.log1p))
    if feature.kind == "text" and feature.encoder is None:
        facts += [("encoder", HASHED_WORDS, before.encoder), ("dim", feature.dim, before.dim)]
    elif feature.kind == "text":
        folder = find_model(f"data.features.{before.name}.encoder", feature.encoder or "")
        facts.append(("encoder", model_name(folder), before.encoder))
    return facts


def _in_words(multi_valued: bool, weighted: bool) -> str:
    return ("lists of values" if multi_valued else "single values") + (", weighted" if weighted else "")
