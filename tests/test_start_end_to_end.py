"""A second day's data goes on from the first day's model, as a user runs it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.forked import run, succeed
from tests.shop import candidate, prepare_shop
from trainer.data.schema import read_schema
from trainer.runtime import checkpoint

SETTINGS = ("data.global_batch_size=64", "data.streams=8", "run.validate_every=1", "run.epochs=2",
            "run.monitor=val/recall@10", "model.loss.log_q=streaming", "model.query.hidden=[16]")  # fmt: skip


def prepare_day(folder: Path, days: int, **settings: Any) -> Path:
    """Each day brings thirty more users and ten more items."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30 * days), 12)
    item = user * 7 % (10 * days) + rng.integers(0, 10, len(user))
    items = range(10 * days + 10)
    folder.mkdir()
    prepare_shop(
        folder,
        {"user_id": user, "item_id": item, "timestamp": np.arange(len(user))},
        items={"item_id": list(items), "brand": [f"brand {number % 5}" for number in items]},
        **settings,
    )
    return folder / "out"


@pytest.mark.survival
def test_the_second_day_goes_on_from_the_first(tmp_path: Path) -> None:
    monday = prepare_day(tmp_path / "day1", 1)
    succeed("trainer.train", f"data.dir={monday}", f"run.dir={tmp_path / 'monday'}", *SETTINGS)
    tuesday = prepare_day(tmp_path / "day2", 2, extends=str(monday), features={"brand": candidate("categorical")})
    start = checkpoint.newest(tmp_path / "monday")
    arguments = (f"data.dir={tuesday}", f"run.dir={tmp_path / 'tuesday'}", *SETTINGS, f"start.checkpoint={start}")
    told = run("trainer.train", *arguments)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert "feature brand is new (features)" in told.stderr and "set start.changes=[features,vocabulary]" in told.stderr
    told = succeed("trainer.train", *arguments, "start.changes=[features,vocabulary]", ranks=2)
    rows = [read_schema(data).item_id.num_embeddings for data in (monday, tuesday)]
    assert f"started from {start}: " in told and f"item_id {rows[0]} rows kept and {rows[1] - rows[0]} new" in told
    assert "feature brand new; optimizer state kept; streaming estimate kept" in told
    succeed("trainer.evaluate", f"run.dir={tmp_path / 'tuesday'}")
    assert json.loads((tmp_path / "tuesday" / "metrics.json").read_text())["test/recall@10"] > 0
