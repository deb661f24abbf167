"""Which files a source's path names, on this machine or wherever pyarrow.fs reads."""

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from trainer.errors import UserError

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".csv.zst")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of the source."""

    name: str
    """What the engine opens and messages tell: a path here, or a URI without query and credentials."""
    path: str
    """Where it lies in `filesystem`."""
    filesystem: fs.FileSystem

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet by its name; otherwise it is CSV."""
        return self.name.endswith(PARQUET)

    @property
    def is_remote(self) -> bool:
        """Whether the engine needs our help to open it."""
        return not isinstance(self.filesystem, fs.LocalFileSystem)


def find_files(where: str, source: str, path: str) -> list[SourceFile]:
    """The files that a path names, by name: a file, a folder's CSV and Parquet, or a glob.

    Args:
        where: The setting that holds the path.
        source: Folder or URI of a folder that `path` is relative to, unless it is absolute or a URI itself.
        path: What to find.

    Raises:
        UserError: there is none, they cannot be listed, or CSV is mixed with Parquet.
    """
    if _is_uri(path) or path.startswith("/"):
        filesystem, named, prefix = _open_place(where, path)
    else:
        filesystem, folder, prefix = _open_place(where, source)
        named = f"{folder.rstrip('/')}/{path}"
    try:
        found = _list(filesystem, named.rstrip("/"))
    except FileNotFoundError:
        found = []
    except (OSError, pa.ArrowException) as error:
        raise unreachable(where, prefix + named, error) from error
    if not found:
        raise UserError(where, prefix + named, "a CSV or Parquet file, a folder of them or a glob", f"set {where}=...")
    if len({name.endswith(PARQUET) for name in found}) > 1:
        raise UserError(where, prefix + named, "either CSV or Parquet", f"set {where} to a glob such as '*.parquet'")
    if not found[0].endswith(PARQUET + CSV):
        raise UserError(where, prefix + found[0], "a name that ends in " + ", ".join(PARQUET + CSV), "rename the file")
    return [SourceFile(prefix + name, name, filesystem) for name in found]


def unreachable(where: str, name: str, error: Exception) -> UserError:
    """What to tell of a place that cannot be listed."""
    return UserError(where, name, f"a place that can be reached and read ({_in_one_line(error)})",
                     "check the address, the credentials and the connection")  # fmt: skip


def unreadable(where: str, name: str, error: Exception) -> UserError:
    """What to tell of a file whose content is no good."""
    expected = f"readable files ({_in_one_line(error)})"
    return UserError(where, name, expected, "write the file anew (CSV in UTF-8), or leave it out")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _is_uri(path: str) -> bool:
    return "://" in path


def _open_place(where: str, place: str) -> tuple[fs.FileSystem, str, str]:
    """The file system of a path or URI, the path in it, and what stands before paths in names."""
    if not _is_uri(place):
        return fs.LocalFileSystem(), os.path.abspath(place), ""
    uri, question, query = place.partition("?")
    parts = urlsplit(uri)
    credentials, _, host = parts.netloc.rpartition("@")
    told = uri.replace(f"{credentials}@", "") if credentials else uri
    try:
        # Globs and spaces are no characters of a URI; what is escaped already stays.
        filesystem, path = fs.FileSystem.from_uri(quote(uri, safe=":/@%+,;=&!$'()~") + question + query)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = _in_one_line(error).replace(f"{credentials}@", "")
        expected = f"a path, or a URI such as s3://bucket/folder that pyarrow.fs knows ({reason})"
        raise UserError(where, told, expected, "correct the address") from None
    except OSError as error:
        raise unreachable(where, told, error) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return filesystem, path, ""
    # A bucket stands in the path already.
    return filesystem, path, f"{parts.scheme}://{host if path.startswith('/') else ''}"


def _list(filesystem: fs.FileSystem, named: str) -> list[str]:
    """The paths of the files that `named` stands for, sorted, without hidden ones."""
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    listing: AbstractFileSystem = LocalFileSystem() if is_local else ArrowFSWrapper(filesystem)
    kind = filesystem.get_file_info(named).type
    if kind == fs.FileType.File:
        return [named]
    if kind == fs.FileType.Directory:
        listed, folder = listing.find(named, detail=True, on_error="raise"), named
        found = [name for name in listed if name.endswith(PARQUET + CSV)]
    elif _GLOB.search(named):
        listed, folder = listing.glob(named, detail=True, on_error="raise"), _GLOB.split(named)[0].rpartition("/")[0]
        found = [name for name, entry in listed.items() if entry["type"] == "file"]
    else:
        return []
    # What engines leave beside their output (_SUCCESS, _temporary/, .crc) is hidden by its name.
    below = {name: PurePosixPath(name.removeprefix(folder)).parts for name in found}
    return sorted(name for name, parts in below.items() if not any(part.startswith(("_", ".")) for part in parts))
