"""A table on disk: one Parquet file or, as many engines write, a folder with part-*.parquet in it."""

from pathlib import Path

from trainer.data.engine import literal


def part_files(path: Path) -> list[Path]:
    """The files, in order of their rows."""
    return sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]


def scan_parts(path: Path) -> str:
    """SQL of the rows."""
    return f"read_parquet([{', '.join(literal(str(file)) for file in part_files(path))}])"
