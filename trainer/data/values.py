"""The checks of what lies in the features' columns, once they are in the engine's tables."""

from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, Source, first_row
from trainer.data.inputs import Input
from trainer.errors import UserError

# Source view -> the table made of it, what names a row of it, and the word for its rows.
_TABLES = {
    EVENTS: ("read_events", "seq", "events"),
    ITEMS: ("catalog", "item_id", "items"),
    USERS: ("read_users", "user_id", "users"),
}


def check_values(connection: Connection, source: Source, feature: Input) -> list[str]:
    """Looks for numbers that no model can take, and for more values than declared.

    Returns:
        A line that counts the nulls, where there are any.

    Raises:
        UserError: a number is infinite, beyond its type or below what log1p takes, vectors differ in length, a row has
            more values than max_values, or not a weight of 0 or more for each.
    """
    if feature.multi_valued:
        _check_lengths(connection, source, feature)
    if feature.weights:
        _check_weights(connection, source, feature)
    if feature.kind not in ("numeric", "vector"):
        return []
    where, value = f"data.features.{feature.name}", feature.column
    table, key, rows = _TABLES[feature.relation]
    selected = f"{feature.value} AS {value}"
    bad = f"isinf({value})"
    if feature.kind == "vector":
        bad = f"len(list_filter({value}, lambda x: x IS NULL OR NOT isfinite(x))) > 0"
        _check_float16(connection, source, feature)
        short, long = first_row(connection, f"SELECT min(len({value})), max(len({value})) FROM {table}")
        if not short or short != long:
            lengths = f"SELECT len({value}) AS length, count(*) AS rows FROM {table} GROUP BY length"
            usual = f"SELECT length FROM ({lengths}) WHERE length IS NOT NULL ORDER BY rows DESC, length LIMIT 1"
            first = source.first(connection, feature.relation, selected, f"len({value}) <> ({usual})")
            raise UserError(where, f"vectors of length {short} to {long}{first}", "one length above 0 for all",
                            "make them equal in the source")  # fmt: skip
    infinite, example, missing = first_row(
        connection,
        f"""
        SELECT count(*) FILTER ({bad}), min({key}) FILTER ({bad}), count(*) FILTER ({value} IS NULL) FROM {table}""",
    )
    if infinite:
        first = source.first(connection, feature.relation, selected, bad)
        raise UserError(where, f"not finite in {infinite} {rows} (such as {key} {example}){first}",
                        "finite float32 numbers", "replace them in the source, by nothing where unknown")  # fmt: skip
    if feature.config.log1p:
        low, count = first_row(connection, f"SELECT min({value}), count(*) FILTER ({value} <= -1) FROM {table}")
        if count:
            first = source.first(connection, feature.relation, selected, f"{value} <= -1")
            raise UserError(f"{where}.log1p", f"true, with {count} values down to {low}{first}", "values above -1",
                            f"set {where}.log1p=false")  # fmt: skip
    return [f"feature {feature.name}: missing in {missing} {rows}"] if missing else []


def _check_lengths(connection: Connection, source: Source, feature: Input) -> None:
    where, most = f"data.features.{feature.name}.max_values", feature.config.max_values
    table, key, rows = _TABLES[feature.relation]
    longer = f"len({feature.column}) > {most}"
    query = f"SELECT count(*), min({key}), max(len({feature.column})) FROM {table} WHERE {longer}"
    count, example, longest = first_row(connection, query)
    if count:
        first = source.first(connection, feature.relation, f"{feature.value} AS {feature.column}", longer)
        raise UserError(where, f"{most}, with more in {count} {rows} (such as {key} {example}){first}",
                        f"at least {longest}, the most that a row has", f"set {where}={longest}")  # fmt: skip


def _check_weights(connection: Connection, source: Source, feature: Input) -> None:
    weights, where = feature.weights_column, f"data.features.{feature.name}.weight_column"
    table, key, rows = _TABLES[feature.relation]

    def refuse(bad: str, told: str, expected: str) -> None:
        count, example = first_row(connection, f"SELECT count(*), min({key}) FROM {table} WHERE {bad}")
        if count:
            first = source.first(connection, feature.relation, feature.selected, bad)
            column = f"{feature.config.weight_column}, with {told} in {count} {rows} (such as {key} {example}){first}"
            raise UserError(where, column, expected, "correct those rows in the source")

    refuse(f"{weights} IS NULL", "more or fewer weights than values", "one for each value")
    for bad, told, expected in _BAD_WEIGHTS[feature.config.weighting]:
        refuse(f"len(list_filter({weights}, lambda x: {bad})) > 0", told, expected)


_NO_NUMBER = ("x IS NULL OR NOT isfinite(x) OR x > 3.4e38", "weights that are no numbers", "finite float32 numbers")
_BAD_WEIGHTS = {
    "given": (_NO_NUMBER, ("x < 0", "weights below 0", "weights from 0")),
    "tf_idf": (_NO_NUMBER, ("x <> 0 AND x < 1", "counts that are neither 0 nor from 1", "counts, for tf_idf")),
}


def _check_float16(connection: Connection, source: Source, feature: Input) -> None:
    if feature.config.dtype != "float16":
        return
    table, key, rows = _TABLES[feature.relation]
    # What is finite in float32 and rounds to infinity in float16.
    large = f"len(list_filter({feature.column}, lambda x: isfinite(x) AND abs(x) >= 65520)) > 0"
    query = f"SELECT count(*), min({key}) FROM {table} WHERE {large}"
    count, example = first_row(connection, query)
    if count:
        where = f"data.features.{feature.name}.dtype"
        first = source.first(connection, feature.relation, f"{feature.value} AS {feature.column}", large)
        raise UserError(where, f"float16, with larger numbers in {count} {rows} (such as {key} {example}){first}",
                        "numbers up to 65504", f"set {where}=float32")  # fmt: skip
