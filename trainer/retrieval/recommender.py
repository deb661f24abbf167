"""From a query to a list of items: the query tower, and the index of what the same model's item tower gave.

recommender = Recommender("RUN")
recommender.recommend([{"history": [50, 181]}], k=10)
"""

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.errors import UserError
from trainer.retrieval.item_index import ItemIndex, Scored
from trainer.serving.columns import Query
from trainer.serving.query_tower import QueryTower
from trainer.serving.vocabulary import Id


class Recommender:
    """Query tower and index of a run, loaded.

    Args:
        run_dir: with query_tower.pt2 and index.

    Attributes:
        tower: of the queries.
        index: of the items.

    Raises:
        UserError: either is missing, or they are not of the same model.
    """

    def __init__(self, run_dir: str | PathLike[str]) -> None:
        self.tower = open_tower(run_dir)
        self.index = ItemIndex(Path(run_dir) / "index")
        refuse_other_model(self.tower, self.index.facts["model"], f"{run_dir}: index", "trainer.index")

    def recommend(
        self, queries: Sequence[Query], k: int, left_out: Sequence[Collection[Id]] = ()
    ) -> list[list[Scored]]:
        """The best items of each query by falling score.

        Args:
            queries: see QueryTower.embed.
            k: length of the lists.
            left_out: for each query, ids that are not to be in its list.

        Raises:
            UserError: see QueryTower.embed.
        """
        return self.of_inputs(self.tower.encode(queries), k, left_out)

    def of_inputs(
        self, inputs: dict[str, Tensor], k: int, left_out: Sequence[Collection[Id]] = ()
    ) -> list[list[Scored]]:
        """Likewise, of queries that are encoded."""
        return self.index.search(self.tower.run(inputs).numpy(), k, left_out)


def open_tower(run_dir: str | PathLike[str]) -> QueryTower:
    """The query tower of a run.

    Raises:
        UserError: it is not there, or not whole.
    """
    path = Path(run_dir) / "query_tower.pt2"
    if not path.is_file():
        raise UserError("run.dir", run_dir, "a run with query_tower.pt2",
                        f"write it: trainer.query_tower run.dir={run_dir}")  # fmt: skip
    return QueryTower(path)


def refuse_other_model(tower: QueryTower, fingerprint: Any, what: str, command: str) -> None:
    """Refuses embeddings whose dot products with the tower's mean nothing.

    Args:
        tower: of the queries.
        fingerprint: of the model that the embeddings are of.
        what: they are in.
        command: which writes it.

    Raises:
        UserError: they are of another model.
    """
    if fingerprint != tower.facts["fingerprint"]:
        raise UserError(what, f"of model {str(fingerprint)[:12]}",
                        f"of the query tower's, {tower.facts['fingerprint'][:12]} ({tower.facts['checkpoint']})",
                        f"write both from one checkpoint: {command}, trainer.query_tower")  # fmt: skip
