"""Proof that a folder of shards is whole, as it was written, free of duplicates, and what the model gives.

Files and ids are dealt out to the ranks shard by shard; whether an id is there twice is seen by the first rank, which
holds the ids of all. The sample is some rows in a row of each shard, or of as many shards as it has rows, at places
that a fixed seed draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from trainer.config import ExportConfig
from trainer.data.vector_types import TOLERANCE, shares_off
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.gather import gather_objects
from trainer.runtime.loading import SavedRun
from trainer.runtime.processes import Processes
from trainer.runtime.shard_claim import claim, stretches
from trainer.runtime.shard_folder import MANIFEST, SUCCESS, read_manifest
from trainer.runtime.shards import Shards, named

_TOLD, _SHOWN, _SEED = 5, 80, 0
_AGAIN = "remove the files named, and give the same command without export.verify: it writes what is missing"


@dataclass(frozen=True)
class Proof:
    """What was proven.

    Attributes:
        folder: with the shards.
        num_files: of them.
        num_samples: rows that were computed anew.
        farthest: the most that an element of those was off, as a share of its row's largest.
        tolerance: what it might have been.
    """

    folder: Path
    num_files: int
    num_samples: int
    farthest: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"in {self.folder} are whole, in {self.num_files} shards as they were written, and each there once; "
            f"{self.num_samples} computed anew are off by {self.farthest:.1e} of their largest element at most "
            f"({self.tolerance:.1e} allowed)"
        )


def prove(shards: Shards, run: SavedRun, config: ExportConfig, processes: Processes) -> Proof:
    """Reads a folder of shards without writing anything; all ranks learn the same.

    Args:
        shards: of the rows that it should have.
        run: whose they should be.
        config: of the export; type and rows of the shards are the folder's own.
        processes: this process's place.

    Raises:
        UserError: it is not whole, of another model or other data, or a shard or an embedding is not as it should be;
            names them.
    """
    folder = Path(config.run.dir) / shards.folder
    manifest = _manifest(folder)
    of_folder = replace(config.export, dtype=manifest["dtype"], rows_per_shard=manifest["rows_per_shard"])
    _refuse_other_claim(folder, manifest, claim(shards, run, of_folder))
    rows_of = stretches(shards, of_folder.rows_per_shard)
    _refuse_strays(folder, manifest, rows_of)
    _check_files(folder, manifest, shards, rows_of, processes)
    _refuse(folder, _repeated(folder, rows_of, next(iter(shards.columns))) if config.export.side != "query" and
            processes.is_first else [])  # fmt: skip
    samples, dtype = _samples(rows_of, config.export.verify_rows), manifest["dtype"]
    farthest = _check_samples(folder, shards, rows_of, samples, dtype, processes)
    num_samples = sum(len(rows) for _, rows in samples) * shards.interests
    return Proof(folder, len(rows_of), num_samples, farthest, TOLERANCE[dtype])


def _check_files(folder: Path, manifest: Mapping[str, Any], shards: Shards, rows_of: Mapping[str, range],
                 processes: Processes) -> None:  # fmt: skip
    """All but the embeddings, file by file."""
    noted = {shard["file"]: shard for shard in manifest["shards"]}
    mine = list(rows_of)[processes.rank :: processes.world_size]
    found = [
        _wrong(folder, noted[file], shards, rows_of[file])
        for file in tqdm(mine, desc="check", unit="shard a rank", disable=not processes.is_first)
    ]
    _refuse(folder, [wrong for wrong in found if wrong is not None])


def _check_samples(folder: Path, shards: Shards, rows_of: Mapping[str, range], samples: Sequence[tuple[str, range]],
                   dtype: str, processes: Processes) -> float:  # fmt: skip
    """Embeddings of some rows, computed anew; returns the most that any is off."""
    if not samples:
        return 0.0
    shards.load(processes)
    untrue: list[str] = []
    farthest = 0.0
    mine = samples[processes.rank :: processes.world_size]
    for file, rows in tqdm(mine, desc="sample", unit="shard a rank", disable=not processes.is_first):
        anew_RD = torch.cat([*shards.embeddings(rows)]).cpu().numpy()
        start = (rows.start - rows_of[file].start) * shards.interests
        off_R = shares_off(pq.read_table(folder / file).slice(start, len(anew_RD)), anew_RD, dtype)
        farthest = max(farthest, float(off_R.max()))
        for number in np.flatnonzero(~(off_R <= TOLERANCE[dtype])):  # a NaN is not within it either
            whose = named(shards, rows.start + int(number) // shards.interests)
            untrue.append(f"{file}: the embedding of {whose} is off by {off_R[number]:.1e} of its largest element")
    _refuse(folder, untrue)
    return max(gather_objects(farthest))


def _manifest(folder: Path) -> dict[str, Any]:
    manifest, is_marked = read_manifest(folder), (folder / SUCCESS).exists()
    if manifest is None or not is_marked or manifest.get("dtype") not in TOLERANCE:
        lacks = SUCCESS if manifest else MANIFEST
        raise UserError("export.verify", folder, f"a folder that trainer.export has completed: it lacks its {lacks}",
                        "give the same command without export.verify")  # fmt: skip
    return manifest


def _refuse_other_claim(folder: Path, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    stated = {name: value for name, value in manifest.items() if name != "shards"}
    others = [
        f"{name} is {str(stated.get(name))[:_SHOWN]}, not {str(expected.get(name))[:_SHOWN]}"
        for name in sorted(stated.keys() | expected.keys())
        if stated.get(name) != expected.get(name)
    ]
    if others:
        raise UserError("export.verify", folder, f"an export of this model and data; {', '.join(others)}",
                        "name the checkpoint and the data that it is of, or export anew")  # fmt: skip


def _refuse_strays(folder: Path, manifest: Mapping[str, Any], rows_of: Mapping[str, range]) -> None:
    listed = [shard["file"] for shard in manifest["shards"]]
    strays = sorted({path.name for path in folder.iterdir()} - {MANIFEST, SUCCESS, *listed})
    if listed != list(rows_of) or strays:
        found = f"{', '.join(strays)} beside them" if strays else f"{len(listed)} in its manifest"
        raise UserError("export.verify", folder, f"{len(rows_of)} shards, not {found}", _AGAIN)


def _wrong(folder: Path, noted: Mapping[str, Any], shards: Shards, rows: range) -> str | None:
    """What is wrong with a shard, apart from its embeddings."""
    path = folder / noted["file"]
    read = checkpoint.checksum(path)
    if read is None:
        return f"{path.name} is missing"
    if read != {key: noted[key] for key in ("bytes", "sha256")}:
        return f"{path.name} has other bytes than were written"
    expected, found = shards.identity(rows), pq.read_table(path, columns=list(shards.columns))
    if len(found) != noted["num_rows"] or len(found) != len(rows) * shards.interests:
        return f"{path.name} has {len(found)} rows, not {len(rows) * shards.interests}"
    for name, column in expected.items():
        there = found[name].combine_chunks().cast(column.type)
        if not there.equals(column):
            row = next(row for row in range(len(column)) if there[row] != column[row])
            return f"{path.name} has {name} {there[row]} in row {row}, not {column[row]}"
    return None


def _repeated(folder: Path, files: Iterable[str], column: str) -> list[str]:
    """Ids that come twice."""
    ids = pa.chunked_array(
        [part for file in files for part in pq.read_table(folder / file, columns=[column])[column].chunks]
    )
    if pc.count_distinct(ids, mode="all").as_py() == len(ids):
        return []
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()
    return [f"{column} {count['values']} is there {count['counts']} times" for count in repeated]


def _samples(rows_of: Mapping[str, range], wanted: int) -> list[tuple[str, range]]:
    """Stretches of rows, each in a shard of its own, over which so many rows are spread."""
    rng, files = np.random.default_rng(_SEED), list(rows_of)
    places = np.linspace(0, len(files) - 1, min(wanted, len(files))).round().astype(int)
    samples = []
    for file in (files[place] for place in places):
        rows = rows_of[file]
        start = int(rng.integers(rows.start, max(rows.start, rows.stop - wanted // len(places)) + 1))
        samples.append((file, rows[start - rows.start :][: -(-wanted // len(places))]))
    return samples if samples[0][1] else []


def _refuse(folder: Path, mine: list[str]) -> None:
    """Raises a UserError on every rank if any has found something wrong."""
    wrong = sorted(told for of_rank in gather_objects(mine) for told in of_rank)
    if wrong:
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise UserError("export.verify", folder, "shards that are as they were written, each id once, and what the "
                        f"model gives; {'; '.join(wrong[:_TOLD])}{more}", _AGAIN)  # fmt: skip
