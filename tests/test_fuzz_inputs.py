"""Real files, damaged at random. Of a damaged file `prepare` may do one of two things:

- refuse it with a UserError, in one line;
- prepare it, and then rightly: the rows kept and dropped are those read, the splits are those kept, and events and
  items are what an independent reader (Python's csv, pyarrow.parquet) makes of the same bytes, where it reads them too.
  A byte flipped inside a value changes it for every reader; nobody can see that, and the comparison allows for it.

Any other exception, a crash or a hang is a failure. Cases run in a process of their own, so that either is seen.

    FUZZ_CASES=5000 FUZZ_FIRST=1000 pytest tests/test_fuzz_inputs.py      # for longer
"""

import csv
import faulthandler
import gzip
import io
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.damage import damage
from tests.shop import IDS, candidate, catalog, positives, rows, vocabulary
from trainer.config import TabularConfig
from trainer.data.preparation import Prepared, prepare_folder
from trainer.data.schema import SPLITS
from trainer.data.tabular import read_tabular
from trainer.errors import UserError

MOVIELENS = Path(__file__).parent.parent.parent / "shared" / "data" / "ml-100k"
CASES, FIRST = int(os.environ.get("FUZZ_CASES", "60")), int(os.environ.get("FUZZ_FIRST", "0"))
SECONDS = 60  # for one case
KINDS = ("csv", "csv.gz", "csv.zst", "none.parquet", "snappy.parquet", "zstd.parquet")
EVENT = ("user_id", "item_id", "timestamp")
ITEM = ("item_id", "year", "title")


# --- whole files -----------------------------------------------------------------------------------------------------


def tables() -> tuple[pa.Table, pa.Table]:
    """Events and items of MovieLens, or made up where it is not there."""
    if not MOVIELENS.is_dir():
        made = random.Random(0)
        events = [(made.randrange(90), made.randrange(300), 10**9 + made.randrange(10**6)) for _ in range(3000)]
        items = [(item, 1900.0 + item % 100, f'A "title", of {item}') for item in range(300)]
    else:
        ratings = (line.split("\t") for line in (MOVIELENS / "u.data").read_text().splitlines())
        events = [(int(user), int(item), int(time)) for user, item, _, time in ratings if int(user) <= 30]
        movies = (line.split("|") for line in (MOVIELENS / "u.item").read_text("latin-1").splitlines())
        items = [(int(movie[0]), float(movie[2][-4:] or "nan"), movie[1]) for movie in movies]
    return (
        pa.table(dict(zip(EVENT, zip(*events, strict=True), strict=True))),
        pa.table(dict(zip(ITEM, zip(*items, strict=True), strict=True))),
    )


def written(table: pa.Table, kind: str) -> bytes:
    file = io.BytesIO()
    if kind.endswith("parquet"):
        pq.write_table(table, file, compression=kind.split(".")[0], row_group_size=700, data_page_size=2000)
        return file.getvalue()
    pa.csv.write_csv(table, file)
    match kind:
        case "csv.gz":
            return gzip.compress(file.getvalue(), mtime=0)
        case "csv.zst":
            return pa.Codec("zstd").compress(file.getvalue(), asbytes=True)
        case _:
            return file.getvalue()


# --- one case --------------------------------------------------------------------------------------------------------


def run_case(seed: int, folder: Path, tell: Callable[[str], None]) -> str:
    """Damages, prepares and compares; returns what came of it."""
    rng = random.Random(seed)
    kinds = {name: rng.choice((*KINDS, "csv", "none.parquet")) for name in ("events", "items")}
    damaged = rng.choice(("events", "events", "items"))
    for name, table in zip(("events", "items"), tables(), strict=True):
        content = written(table, kinds[name])
        if name == damaged:
            content = damage(content, rng)
        (folder / f"{name}.{kinds[name]}").write_bytes(content)
    paths = {name: folder / f"{name}.{kind}" for name, kind in kinds.items()}
    config = TabularConfig(
        dir=str(folder / "out"),
        source=str(folder),
        events=paths["events"].name,
        items=paths["items"].name,
        unknown_items="drop",
        features=IDS | {"year": candidate("numeric"), "title": candidate("text", dim=8)},
    )
    tell("prepare")
    try:
        prepared = prepare_folder(config, "300MB", partial(read_tabular, config))
    except UserError as error:
        return check_refusal(str(error), folder, list(paths.values()))
    check_counts(prepared, folder)
    tell("compare")
    events, items = read_independently(paths["events"], EVENT), read_independently(paths["items"], ITEM)
    if events is None or items is None:
        return "prepared, unlike the other reader"
    compare(prepared, folder, events, items)
    return "prepared"


def check_refusal(message: str, folder: Path, files: list[Path]) -> str:
    assert message.isprintable(), message
    assert sorted(folder.iterdir()) == sorted(files)
    return f"refused: {message}"


def check_counts(prepared: Prepared, folder: Path) -> None:
    kept = {split: len(rows(folder, split)) for split in SPLITS}
    assert kept == prepared.schema.num_events
    assert prepared.rows["events"].kept == sum(kept.values())
    assert prepared.rows["items"].kept == len(catalog(folder)) == prepared.schema.num_items


def read_independently(path: Path, names: tuple[str, ...]) -> list[tuple[Any, ...]] | None:
    """The rows, None where the reader gives up or sees columns of other types than were written."""
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=list(names))
            whole = dict(zip(("events", "items"), tables(), strict=True))[path.name.split(".")[0]]
            if table.schema.types != whole.schema.types:
                return None
            table.validate(full=True)
            return list(zip(*(table[name].to_pylist() for name in names), strict=True))
        with pa.OSFile(str(path)) as file, pa.input_stream(file, compression=compression(path)) as stream:
            text = stream.read().decode("utf-8-sig")
        csv.field_size_limit(1 << 30)
        header, *lines = (line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line)
        if any(len(line) != len(header) for line in lines):
            return None
        places = [header.index(name) for name in names]
        return [tuple(line[place] or None for place in places) for line in lines]
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return None


def compression(path: Path) -> str | None:
    return {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)


def compare(prepared: Prepared, folder: Path, events: list[tuple[Any, ...]], items: list[tuple[Any, ...]]) -> None:
    schema, listed = prepared.schema, catalog(folder)
    as_user, as_item = (int if kind == "int64" else str for kind in (schema.user_id_type, schema.item_id_type))
    found = {row["raw_item_id"]: row["year"] for row in listed}
    wanted = {as_item(item): as_float32(year) for item, year, _ in items}
    assert len(items) == len(listed)
    np.testing.assert_equal(found, wanted)
    users = {index: user for user, index in vocabulary(folder, "user_id").items()}
    prepared_events = Counter(
        (row["raw_user_id"] if "raw_user_id" in row else users[row["user_id"]],
         listed[place]["raw_item_id"], row["timestamp"])
        for split in SPLITS
        for row in rows(folder, split)
        for place in positives(row)
    )  # fmt: skip
    read = [
        (as_user(user), as_item(item), math.floor(float(time)) if "." in str(time) else int(time))
        for user, item, time in events
    ]
    assert prepared_events == Counter(event for event in read if event[1] in wanted)
    assert prepared.rows["events"].read == len(events)


def as_float32(value: Any) -> float:
    return float(np.float32("nan" if value is None else value))


# --- many cases ------------------------------------------------------------------------------------------------------


def work(first: int, last: int) -> None:
    """Runs cases in this process, a line of JSON before each step and after each case."""
    for seed in range(first, last):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        with TemporaryDirectory() as folder:
            told = run_case(seed, Path(folder), lambda step: print(json.dumps([seed, step]), flush=True))  # noqa: B023
        print(json.dumps([seed, "done", told]), flush=True)
        faulthandler.cancel_dump_traceback_later()


def run_cases(first: int, last: int) -> dict[int, str]:
    """What came of each case, in as many processes as it takes; a crash of the other reader is none of ours."""
    results: dict[int, str] = {}
    while first < last:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-m", "tests.test_fuzz_inputs", str(first), str(last)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        results |= {seed: told for seed, step, *rest in lines if step == "done" for told in rest}
        if done.returncode == 0:
            break
        seed, step = lines[-1][:2] if lines else (first, "start")
        seed += step == "done"
        crashed = done.returncode < 0 and step == "compare"
        assert crashed, f"case {seed} ended with {done.returncode} in {step}\n{done.stderr[-3000:]}"
        results[seed] = "the other reader crashed"
        first = seed + 1
    return results


def test_damaged_files_are_refused_or_prepared_rightly() -> None:
    results = run_cases(FIRST, FIRST + CASES)
    assert len(results) == CASES
    outcomes = Counter(result.split(":")[0] for result in results.values())
    print(outcomes)
    # Otherwise the damage would be of a kind that proves nothing.
    assert outcomes["refused"] > CASES / 20 and outcomes["prepared"] > CASES / 20, outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_prepared(tmp_path: Path, kind: str) -> None:
    for name, table in zip(("events", "items"), tables(), strict=True):
        (tmp_path / f"{name}.{kind}").write_bytes(written(table, kind))
    config = TabularConfig(dir=str(tmp_path / "out"), source=str(tmp_path), events=f"events.{kind}",
                           items=f"items.{kind}", features=IDS | {"year": candidate("numeric")})  # fmt: skip
    prepared = prepare_folder(config, "300MB", partial(read_tabular, config))
    check_counts(prepared, tmp_path)
    events, items = (
        read_independently(tmp_path / f"{name}.{kind}", names) for name, names in (("events", EVENT), ("items", ITEM))
    )
    assert events is not None and items is not None
    compare(prepared, tmp_path, events, items)
    assert prepared.rows["events"].read == tables()[0].num_rows


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
