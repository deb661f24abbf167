"""The Markov chain, against loops over the rows of the made-up folder."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.prepared import ITEMS, SCHEMA
from tests.ranks import RankPool
from trainer.config import ModelConfig
from trainer.data import transitions
from trainer.data.assembly import BatchAssembler
from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.events import HeldOutReader
from trainer.data.row_groups import open_events
from trainer.data.schema import ITEM_ROW, SEEN, TARGETS, TRAIN_COUNT, VALIDATION_COUNT
from trainer.data.shares import share_of_rank, steps_of_all
from trainer.data.transitions import check_transitions, transition_shares
from trainer.errors import UserError
from trainer.runtime.markov import evaluate_markov, last_items
from trainer.runtime.processes import Processes

KS = [1, 5, 10]
AS_EVENTS = replace(SCHEMA, num_sequences=0)


def pairs(folder: Path, sequences: bool) -> list[tuple[int, int]]:
    """What followed what, in each training row."""
    rows = pq.read_table(folder / ("sequences" if sequences else "events/train")).to_pylist()
    if sequences:
        return [pair for row in rows for pair in zip(row[ITEM_ROW], row[ITEM_ROW][1:], strict=False)]
    return [(row["history"][-1], row[ITEM_ROW]) for row in rows if row["history"]]


def shares(folder: Path, sequences: bool) -> np.ndarray:
    found, counts = np.zeros((ITEMS, ITEMS)), Counter(pairs(folder, sequences))
    for (before, after), times in counts.items():
        found[before, after] = times / sum(counts[before, other] for other in range(ITEMS))
    return found


@pytest.mark.parametrize("at_once", [1 << 24, 100])
@pytest.mark.parametrize("sequences", [True, False])
def test_shares_by_counting(prepared: Path, monkeypatch: pytest.MonkeyPatch, sequences: bool, at_once: int) -> None:
    monkeypatch.setattr(transitions, "PAIRS_AT_ONCE", at_once)
    expected = shares(prepared, sequences)
    for items in (range(ITEMS), range(7, 20), range(3, 3)):
        found = transition_shares(prepared, SCHEMA if sequences else AS_EVENTS, items)
        np.testing.assert_allclose(found.toarray(), expected[:, items.start : items.stop], rtol=1e-12)
    assert 0 < expected.astype(bool).mean() < 1


def test_an_item_that_the_catalogue_lacks_leads_nowhere() -> None:
    histories = pa.array([[3, -1], [], [5], [-1, 2]], pa.list_(pa.int32()))
    table = pa.table({"history": histories, ITEM_ROW: pa.array([1, 2, 3, 4], pa.int32())})
    before, after = transitions._after_histories(table, "history")
    assert (before.tolist(), after.tolist()) == ([-1, 5, 2], [1, 3, 4])


def test_data_without_order_is_refused() -> None:
    check_transitions(AS_EVENTS)
    no_history = replace(AS_EVENTS, features=tuple(f for f in SCHEMA.features if f.kind != "history"))
    with pytest.raises(UserError, match="evaluate.baselines=markov: expected data with sequences or a history"):
        check_transitions(no_history)


def test_last_items_by_hand() -> None:
    ones = torch.ones(3, dtype=torch.int64)
    seen, lengths = torch.arange(15), torch.tensor([3, 0, 12])
    found = last_items(QueryBatch(None, ones, ones, ones, seen, lengths))
    assert found.tolist() == [[2, 1, 0] + [-1] * 7, [-1] * 10, [*range(14, 4, -1)]]


def metrics(processes: Processes, folder: Path) -> dict[str, float]:
    catalog, files = Catalog(folder, AS_EVENTS), open_events(folder, AS_EVENTS, "test")
    evaluation = evaluate_markov(folder, AS_EVENTS, catalog, "test", processes, KS)
    assembler = BatchAssembler(SCHEMA, [SCHEMA.item_id], catalog, ModelConfig())
    share = share_of_rank(files.num_rows, processes.rank, processes.world_size)
    for batch in HeldOutReader(files, assembler, 8, share, steps_of_all(files.num_rows, 8, processes.world_size)):
        evaluation.update(batch)
    return evaluation.metrics(KS)


def test_ranks_and_lists_by_brute_force_from_any_number_of_ranks(prepared: Path, ranks: RankPool) -> None:
    told = [found for world_size in (1, 2, 3) for found in ranks.run(world_size, metrics, prepared)]
    assert all(found == told[0] for found in told)
    chain, recall, listed = shares(prepared, sequences=False), {k: list[float]() for k in KS}, list[list[int]]()
    catalog = pa.ipc.open_file(prepared / "catalog.arrow").read_all().to_pydict()
    counts = np.array(catalog[TRAIN_COUNT]) + np.array(catalog[VALIDATION_COUNT])
    for row in pq.read_table(prepared / "events" / "test").to_pylist():
        last = row[SEEN][::-1][:10]
        weights = np.array([0.8**place for place in range(len(last))])
        score = 1e-6 * counts / counts.sum()
        if last:
            score = score + weights @ chain[last] / weights.sum()
        kept = [item for item in range(ITEMS) if item in row[TARGETS] or item not in row[SEEN]]
        best = sorted(kept, key=lambda item: (-score[item], item))
        listed.append(best)
        for k in KS:
            recall[k].append(len(set(best[:k]) & set(row[TARGETS])) / len(row[TARGETS]))
    for k in KS:
        assert told[0][f"recall@{k}"] == pytest.approx(np.mean(recall[k]))
        assert told[0][f"coverage@{k}"] == pytest.approx(len({item for best in listed for item in best[:k]}) / ITEMS)
