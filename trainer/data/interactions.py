"""Which items each user had in training."""

from pathlib import Path

import numpy as np
from scipy import sparse
from tqdm import tqdm

from trainer.data.contract import list_parts
from trainer.data.row_groups import one_array, open_events, open_sequences
from trainer.data.schema import ITEM_ROW, Schema
from trainer.errors import UserError


def user_of(schema: Schema) -> str:
    """Name of the column that says whose a training row is.

    Raises:
        UserError: there is none.
    """
    names = [f.name for f in schema.side("query") if f.kind == "id" and not f.per_event]
    if not names:
        raise UserError("evaluate.baselines", "ials", "data with a user id among the query's features",
                        "leave ials out, or prepare the data with it")  # fmt: skip
    return names[0]


def training_interactions(data_dir: str | Path, schema: Schema, show_progress: bool = False) -> sparse.csr_matrix:
    """float32 [users, items], 1 where a user of the vocabulary had an item, row 0 of the unknown ones left out.

    Raises:
        UserError: see `user_of`; or the training rows cannot be read.
    """
    user = user_of(schema)
    as_events = any((Path(data_dir) / "events" / "train").glob("part-*.parquet"))
    columns = [ITEM_ROW, user]
    files = open_events(data_dir, schema, "train", columns) if as_events else open_sequences(data_dir, schema, columns)
    pairs = [np.empty(0, np.int64)]
    for group in tqdm(range(len(files.sizes)), desc="interactions", unit="row group", disable=not show_progress):
        table = files.read(group)
        item, user_row = one_array(table, ITEM_ROW), one_array(table, user).to_numpy().astype(np.int64)
        if not as_events:
            item, offsets = list_parts(item)
            user_row = np.repeat(user_row, np.diff(offsets))
        item_row = item.to_numpy().astype(np.int64)
        known = (user_row > 0) & (item_row >= 0)
        pairs.append(np.unique(user_row[known] * schema.num_items + item_row[known]))
    users, items = np.divmod(np.unique(np.concatenate(pairs)), schema.num_items)
    _, number = np.unique(users, return_inverse=True)
    shape = (int(number.max()) + 1 if len(number) else 0, schema.num_items)
    return sparse.csr_matrix((np.ones(len(items), np.float32), (number, items)), shape=shape)
