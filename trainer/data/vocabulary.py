"""Vocabularies: which values have an embedding row, and which row."""

from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, first_row, shuffled
from trainer.data.extension import Extended
from trainer.data.hashing import describe_collisions
from trainer.data.inputs import TIME_VALUES, Input

# What a vocabulary counts: training events of queries and of item ids; for other features of items, items.
_TRAINING_ROWS = {
    EVENTS: "SELECT {value} FROM events WHERE split = 'train'",
    USERS: "SELECT {value} FROM events JOIN read_users USING (user_id) WHERE split = 'train'",
    ITEMS: "SELECT {value} FROM catalog",
}
_ITEM_IDS = "SELECT item_id AS value FROM events JOIN catalog USING (item_row) WHERE split = 'train'"


def vocabulary_table(feature: str) -> str:
    """Name of the engine's table with the vocabulary of a feature."""
    return f"vocabulary_{feature}"


def size_tables(
    connection: Connection, inputs: list[Input], extended: Extended, seed: int
) -> tuple[dict[str, int], list[str]]:
    """Builds the vocabularies of all features that have one.

    Returns:
        Rows of each embedding table, the out-of-vocabulary row 0 included, and a line for what is told of some.

    Raises:
        UserError: an extended vocabulary cannot be read.
    """
    table_rows, notes = {}, []
    for feature in inputs:
        buckets, least = feature.config.hash_buckets, feature.config.min_count
        if feature.has_vocabulary:
            kept, rare = build_vocabulary(connection, feature, extended, seed)
            table_rows[feature.name] = kept + 1
            if feature.name in extended.features:
                known = extended.features[feature.name].num_embeddings - 1
                notes.append(f"feature {feature.name}: {known:,} values kept, {kept - known:,} gained")
            if rare:
                times = "no occurrence" if least == 1 else f"fewer than {least} occurrences"
                notes.append(f"feature {feature.name}: {rare} values with {times} in training share row 0")
        elif buckets is not None:
            table_rows[feature.name] = buckets + 1
            notes.append(f"feature {feature.name}: {describe_collisions(connection, _occurrences(feature), buckets)}")
    return table_rows, notes


def build_vocabulary(connection: Connection, feature: Input, extended: Extended, seed: int) -> tuple[int, int]:
    """Makes the table vocabulary_<feature>(id, index from 1, count).

    An extended vocabulary comes first, as it is. New values follow in pseudo-random order: the popular ones are then
    spread evenly over row-wise shards.

    Returns:
        How many values are in, and how many of the data's are out for having fewer than min_count occurrences.
    """
    table = vocabulary_table(feature.name)
    order, least = shuffled(seed, "id"), feature.config.min_count
    found = f"SELECT value AS id, count(*) AS count FROM ({_occurrences(feature)}) WHERE value IS NOT NULL GROUP BY id"
    if feature.kind in TIME_VALUES:
        order, least = "id", 0
        found = f"""
            SELECT id, count(events.seq) AS count FROM range({TIME_VALUES[feature.kind]}) AS hours(id)
            LEFT JOIN events ON {feature.column} = id AND split = 'train' GROUP BY id"""
    connection.execute(f"CREATE TABLE {table}_found AS {found}")
    known = extended.load_vocabulary(connection, feature, f"{table}_known")
    connection.execute(f"""
        CREATE TABLE {table} AS
        SELECT id, index, coalesce(count, 0) AS count FROM {table}_known LEFT JOIN {table}_found USING (id)
        UNION ALL
        SELECT id, CAST({known} + row_number() OVER (ORDER BY {order}) AS INTEGER) AS index, count
        FROM {table}_found ANTI JOIN {table}_known USING (id) WHERE count >= {least}
        ORDER BY index""")
    # An item never seen in training is as unknown as one seen too rarely.
    every = "SELECT item_id AS id FROM catalog" if _is_item_id(feature) else f"SELECT id FROM {table}_found"
    (kept,) = first_row(connection, f"SELECT count(*) FROM {table}")
    (rare,) = first_row(connection, f"SELECT count(*) FROM ({every}) ANTI JOIN {table} USING (id)")
    connection.execute(f"DROP TABLE {table}_found; DROP TABLE {table}_known")
    return kept, rare


def _is_item_id(feature: Input) -> bool:
    return feature.kind == "id" and feature.side == "candidate"


def _occurrences(feature: Input) -> str:
    """Query of the values that are counted, as often as they occur; a hashed item id needs no event to have a row."""
    if _is_item_id(feature) and feature.has_vocabulary:
        return _ITEM_IDS
    value = f"unnest({feature.column})" if feature.multi_valued else feature.column
    return training_values(feature, f"{value} AS value")


def training_values(feature: Input, value: str) -> str:
    """Query of a value, in SQL, of each training row of a feature: of events, or of items."""
    return _TRAINING_ROWS[feature.relation].format(value=value)
