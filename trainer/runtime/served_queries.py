"""Queries of a prepared folder as a query tower takes them, without the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from torch import Tensor

from trainer.data.catalog import Catalog
from trainer.data.raw_queries import item_ids, raw_queries
from trainer.data.row_groups import one_array, open_events
from trainer.data.schema import HISTORY_AGE, RAW_USER_ID, SEEN, Feature, read_schema
from trainer.errors import UserError
from trainer.runtime import run_directory
from trainer.serving.columns import Column, Several, Single
from trainer.serving.query_tower import QueryTower
from trainer.serving.vocabulary import Id


@dataclass(frozen=True)
class ServedQuery:
    """One query, ready for the tower.

    Attributes:
        inputs: of the tower, of one query.
        history: ids of the items before it, the oldest first.
        seen: ids that the data says its user had before it, besides.
    """

    inputs: dict[str, Tensor]
    history: list[Id | None]
    seen: list[Id | None]


class ServedQueries:
    """Held-out rows of the data that a query tower's model was trained on.

    Args:
        tower: in service.
        run_dir: of the training.
        data_dir: where the data is, if not where it was in training.

    Attributes:
        data_dir: of the data.

    Raises:
        UserError: the data is not there, or not that of the tower.
    """

    def __init__(self, tower: QueryTower, run_dir: str, data_dir: str | None) -> None:
        self.data_dir = data_dir or run_directory.read_config(run_dir).data.dir
        self._schema = read_schema(self.data_dir, "run.data_dir")
        run_directory.check_same_data(self.data_dir, self._schema, tower.schema)
        self._tower, self._catalog = tower, Catalog(self.data_dir, self._schema)
        by_name = {feature.name: feature for feature in self._schema.side("query")}
        self._features = [by_name[name] for name in tower.facts["features"]]
        self._history = next((feature.name for feature in self._features if feature.kind == "history"), None)
        # what a tower is given in place of an id is not in the data
        self._known = [f for f in self._features if f.is_sparse and f.kind != "history"
                       and f.name not in tower.facts["outside"]]  # fmt: skip

    def last(self, split: str, most: int) -> dict[str, Tensor]:
        """Inputs of the last queries of a split.

        Raises:
            UserError: the split has no rows, or they cannot be read.
        """
        files = open_events(self.data_dir, self._schema, split)
        first = max(0, files.num_rows - most)
        events = pa.concat_tables(files.batches(first, files.num_rows, most))
        return self._tower.encode(self._raw(events)) | rows_as_inputs(events, self._known, self._catalog)

    def of_user(self, user: str, split: str, said: Mapping[str, Any]) -> ServedQuery:
        """The last query of a user.

        Args:
            user: your own id.
            split: test or validation.
            said: values that take the place of the user's.

        Raises:
            UserError: there is no such user there, the tower lacks tables, or what is said does not fit.
        """
        if self._tower.facts["outside"]:
            raise UserError("recommend.user", user, "a query tower with all tables inside; without is "
                            f"{', '.join(self._tower.facts['outside'])}",
                            "name its row in recommend.query, or write the tower with tower.without=[]")  # fmt: skip
        events = self._row_of(user, split)
        [raw] = self._raw(events)
        if self._history in said:
            raw.pop(HISTORY_AGE, None)  # whose events they were is gone
        known = [feature for feature in self._known if feature.name not in said]
        query = {**raw, **said}
        inputs = self._tower.encode([query]) | rows_as_inputs(events, known, self._catalog)
        [seen] = one_array(events, SEEN).to_pylist()
        return ServedQuery(inputs, self._history_of(query), item_ids(self._catalog, seen))

    def described(self, said: Mapping[str, Any]) -> ServedQuery:
        """A query that the data need not know.

        Raises:
            UserError: a name or value does not fit.
        """
        return ServedQuery(self._tower.encode([said]), self._history_of(said), [])

    def _raw(self, events: pa.Table) -> list[dict[str, Any]]:
        """All but what is looked up by rows."""
        return raw_queries(events, self._features, {}, self._catalog, self._tower.facts["has_ages"])

    def _row_of(self, user: str, split: str) -> pa.Table:
        files, folder = open_events(self.data_dir, self._schema, split), Path(self.data_dir) / "events" / split
        try:
            wanted = pa.scalar(user).cast(files.kind(RAW_USER_ID))
            found = ds.dataset(folder).to_table(filter=ds.field(RAW_USER_ID) == wanted)
        except pa.ArrowInvalid:  # no integer, where users have such
            found = pa.table({})
        if len(found) == 0:
            some = ds.dataset(folder).head(3, columns=[RAW_USER_ID])[RAW_USER_ID].to_pylist()
            raise UserError("recommend.user", user, f"a user with a query in {split}, such as "
                            f"{', '.join(map(str, some))}",
                            "name one of them, set another split, or describe them by recommend.query")  # fmt: skip
        return found.slice(len(found) - 1)

    def _history_of(self, query: Mapping[str, Any]) -> list[Id | None]:
        return list(query.get(self._history) or []) if self._history is not None else []


def rows_as_inputs(events: pa.Table, features: Sequence[Feature], catalog: Catalog) -> dict[str, Tensor]:
    """What the exported program takes of features that are looked up, from the rows that the data has of them."""
    inputs: dict[str, Tensor] = {}
    for feature in features:
        column: Column = (Several if feature.is_list else Single)(feature, int)
        rows = raw_queries(events, [feature], {feature.table: range(1, feature.num_embeddings)}, catalog, False)
        inputs |= column.inputs([column.parse(query) for query in rows])
    return inputs
