"""Sources that lie elsewhere, against the same files here. The elsewhere is a server that speaks S3."""

import gzip
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shop import IDS, candidate, events_of
from trainer.config import PrepareConfig, TabularConfig
from trainer.data.parquet_files import open_parquet
from trainer.data.remote import _RangeReader, serve
from trainer.data.source_files import SourceFile, find_files
from trainer.errors import UserError
from trainer.prepare import prepare


class Server:
    """A running S3, and how to name what is in it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.filesystem, _ = pa.fs.FileSystem.from_uri(self.uri("shop", "&allow_bucket_creation=true"))
        self.filesystem.create_dir("shop")

    def uri(self, path: str, more: str = "") -> str:
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}{more}"

    def upload(self, folder: Path, name: str) -> str:
        pa.fs.copy_files(str(folder), f"shop/{name}", destination_filesystem=self.filesystem)
        return self.uri(f"shop/{name}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as errors:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anything")
        process = subprocess.Popen(command, stderr=errors)
        try:
            yield Server(port_told_in(log))
        finally:
            process.terminate()
            process.wait()


def port_told_in(log: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        told = re.search(r"Running on http://127.0.0.1:(\d+)", log.read_text())
        if told:
            return int(told[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def write_shop(folder: Path, name: str) -> None:
    """Events in two parts of several row groups, and items, as one of the kinds of files."""
    (folder / "events").mkdir(parents=True)
    events = pa.table(events_of(*range(400), events=25)).append_column(
        "words", pa.array(["some words, and more"] * 10_000)
    )
    items = pa.table({"item_id": list(range(1, 26)), "price": [0.5 * item for item in range(25)]})
    for path, table in (("events/a", events[:4000]), ("events/b", events[4000:]), ("items", items)):
        if name == "parquet":
            pq.write_table(table, folder / f"{path}.parquet", row_group_size=1000)
            continue
        pa.csv.write_csv(table, folder / f"{path}.csv")
        if name == "csv.gz":
            content = (folder / f"{path}.csv").read_bytes()
            (folder / f"{path}.csv").unlink()
            (folder / f"{path}.csv.gz").write_bytes(gzip.compress(content))


def prepared(out: Path, source: str, events: str, items: str) -> dict[str, bytes]:
    config = TabularConfig(dir=str(out), source=source, events=events, items=items,
                           features=IDS | {"price": candidate("numeric")})  # fmt: skip
    prepare(PrepareConfig(data=config, memory_limit="500MB"))
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz"])
def test_elsewhere_gives_the_same_folder(tmp_path: Path, server: Server, kind: str) -> None:
    write_shop(tmp_path / "shop", kind)
    source = server.upload(tmp_path / "shop", f"of {kind}").replace(" ", "%20")
    here = prepared(tmp_path / "here", str(tmp_path / "shop"), "events", f"items.{kind}")
    assert prepared(tmp_path / "folder", source, "events", f"items.{kind}") == here
    if kind == "parquet":
        assert prepared(tmp_path / "glob", source, f"events/[ab]{'?' * 8}", f"**/items.{kind}") == here
        address, query = source.split("?")
        whole = f"{address}/events/*?{query}", f"{address}/items.{kind}?{query}"
        assert prepared(tmp_path / "uris", str(tmp_path), *whole) == here
        assert prepared(tmp_path / "file", f"file://{tmp_path}/shop", "events", f"items.{kind}") == here


class Counting:
    """An S3 that counts the bytes read from its files."""

    def __init__(self, filesystem: pa.fs.FileSystem) -> None:
        self.filesystem, self.bytes = filesystem, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.filesystem, name)

    def open_input_file(self, path: str) -> Any:
        native, counter = self.filesystem.open_input_file(path), self

        class File:
            def read_at(self, size: int, offset: int) -> bytes:
                counter.bytes += size
                return native.read_at(size, offset)

            def __getattr__(self, name: str) -> Any:
                return getattr(native, name)

        return File()


def test_parquet_is_read_by_ranges_of_the_columns_asked_for_by_several_threads(tmp_path: Path, server: Server) -> None:
    rng = np.random.default_rng(0)
    number, noise = rng.integers(0, 1 << 60, 400_000), rng.bytes(12_000_000)
    table = pa.table({"number": number, "noise": [noise[30 * row : 30 * row + 30] for row in range(400_000)]})
    (tmp_path / "big").mkdir()
    pq.write_table(table, tmp_path / "big" / "a.parquet", row_group_size=25_000, compression="none")
    server.upload(tmp_path / "big", "big")
    counting = Counting(server.filesystem)
    file = SourceFile("s3://shop/big/a.parquet", "shop/big/a.parquet", counting)  # type: ignore[arg-type]
    connection = duckdb.connect(config={"threads": 8})
    serve(connection, [file])
    for _ in range(10):  # one position for all threads would fail about every third time
        counting.bytes = 0
        query = "SELECT number, row_number() OVER () FROM read_parquet('s3://shop/big/a.parquet')"
        found = connection.execute(query).fetchnumpy()
        assert (found["number"] == number).all()
        assert 3_200_000 < counting.bytes < 5_000_000  # of 18 MB


@pytest.mark.parametrize("compress", [False, True])
def test_csv_is_read_rightly_by_several_threads(tmp_path: Path, server: Server, compress: bool) -> None:
    number = np.random.default_rng(0).integers(0, 1 << 60, 600_000)
    (tmp_path / "big").mkdir()
    name = "a.csv.gz" if compress else "a.csv"
    with pa.output_stream(str(tmp_path / "big" / name), compression="detect") as stream:
        pa.csv.write_csv(pa.table({"number": number}), stream)
    server.upload(tmp_path / "big", "big")
    connection = duckdb.connect(config={"threads": 8})
    serve(connection, [SourceFile(f"s3://shop/big/{name}", f"shop/big/{name}", server.filesystem)])
    rows = f"read_csv('s3://shop/big/{name}', auto_detect = false, header = true, columns = {{'number': 'BIGINT'}})"
    for _ in range(3):
        found = connection.execute(f"SELECT number FROM {rows}").fetchnumpy()
        assert (found["number"] == number).all()


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 60)), max_size=30),
    ahead=st.integers(0, 20),
)
def test_a_file_elsewhere_reads_as_one_in_memory(steps: list[tuple[bool, int, int]], ahead: int) -> None:
    content = bytes(range(50))
    file, oracle = _RangeReader(pa.BufferReader(content), ahead), io.BytesIO(content)
    for seek, place, size in steps:
        if seek:
            assert file.seek(place) == oracle.seek(place)
        assert file.read(size) == oracle.read(size)


def test_a_seek_is_the_threads_own_until_another_goes_on_from_the_common_position() -> None:
    file = _RangeReader(pa.BufferReader(bytes(range(50))), 0)
    with ThreadPoolExecutor(1) as other:
        file.seek(10)
        other.submit(file.seek, 30).result()
        assert file.read(2) == bytes([10, 11])
        assert other.submit(file.read, 2).result() == bytes([30, 31])
        assert file.read(1) == bytes([32])
        file.seek(5)
        assert other.submit(file.read, 3).result() == bytes([5, 6, 7])  # sought by one, read on by another
        assert file.read(1) == bytes([8])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "s4://shop/logs",
            r"data.events=s4://shop/logs: expected a path, or a URI such as s3.*Unrecognized filesystem",
        ),
        ("s3://shop/x?color=blue", r"data.events=s3://shop/x: expected a path, or a URI .*Unexpected query parameter"),
        ("SERVER/shop/nothing", r"data.events=s3://shop/nothing/events: expected a CSV or Parquet file"),
        ("SERVER/nosuch/logs", r"data.events=s3://nosuch/logs/events: expected a"),
        ("CLOSED/shop/logs", r"data.events=s3://shop/logs/events: expected a place that can be .*Failed to connect"),
        ("file:///nosuch/folder", r"data.events=/nosuch/folder/events: expected a CSV or Parquet file"),
    ],
)
def test_errors(tmp_path: Path, server: Server, source: str, message: str) -> None:
    if source.startswith("SERVER"):
        source = server.uri(source.removeprefix("SERVER/"))
    elif source.startswith("CLOSED"):
        source = "s3://shop/logs?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:1"
    config = TabularConfig(dir=str(tmp_path / "out"), source=source, events="events", features=IDS)
    with pytest.raises(UserError, match=message) as raised:
        prepare(PrepareConfig(data=config))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_credentials_of_a_uri_are_not_told(tmp_path: Path, server: Server) -> None:
    source = server.uri("me:secret@shop/nothing")
    for wrong in (source, source + "&color=blue", source.replace("nothing", "[]#\x00")):
        with pytest.raises(UserError) as raised:
            find_files("data.events", wrong, "events")
        assert "secret" not in str(raised.value)


def test_a_file_that_vanishes_while_it_is_read(tmp_path: Path, server: Server) -> None:
    write_shop(tmp_path / "shop", "parquet")
    found = find_files("data.events", server.upload(tmp_path / "shop", "vanishing"), "events")
    connection = duckdb.connect()
    serve(connection, found)
    server.filesystem.delete_file(found[0].path)
    with pytest.raises(
        UserError, match=r"data.events=s3://shop/vanishing/events/a.parquet: expected readable files \(.*"
    ):
        open_parquet("data.events", connection, found)
