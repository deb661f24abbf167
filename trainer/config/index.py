"""What `trainer.index` and `trainer.recommend` are told: configs/index.yaml and configs/recommend.yaml."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ServedRunConfig:
    """A run with what serves it: RUN/query_tower.pt2, RUN/item_embeddings, and RUN/index once it is built."""

    dir: str = MISSING
    """run.dir of the training."""
    data_dir: str | None = None
    """Prepared folder, where it is not where it was in training."""
    threads: int | None = None
    """Threads on the CPU; null for one a core."""


@dataclass
class ItemIndexConfig:
    """The index, and how it is tried."""

    kind: str = "hnsw"
    """flat, exact; hnsw, a graph of neighbours that holds every embedding in memory (Malkov and Yashunin 2016); ivf_pq,
    lists of compressed embeddings (Jegou et al. 2011)."""
    links: int = 32
    """Hnsw: neighbours of an item in the graph, twice as many at its ground level."""
    ef_construction: int = 200
    """Hnsw: candidates kept while an item's neighbours are looked for."""
    ef_search: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    """Hnsw: candidates kept in a search; each is measured, and the last is what the index is searched with."""
    lists: int | None = None
    """Ivf_pq: lists that the items are dealt out to; null for 4 sqrt(items), but no more than items / 39."""
    code_size: int = 16
    """Ivf_pq: bytes of an embedding, which must divide its dimension."""
    nprobe: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    """Ivf_pq: lists looked through in a search; each is measured, and the last is what the index is searched with."""
    training_rows: int = 500_000
    """Ivf_pq: items, drawn from all shards, from which lists and codes are learned."""
    seed: int = 0
    """Draws them."""
    split: str = "test"
    """test or validation: its last queries are searched for."""
    queries: int = 1000
    """At most so many."""
    k: int = 10
    """Length of the lists that are compared with the exact ones."""


@dataclass
class IndexConfig:
    """configs/index.yaml."""

    run: ServedRunConfig = field(default_factory=ServedRunConfig)
    index: ItemIndexConfig = field(default_factory=ItemIndexConfig)


@dataclass
class RecommendationConfig:
    """For whom, and how much."""

    user: str | None = None
    """A user of the data, by your own id: their last query of the split."""
    query: str | None = None
    """File with a query as JSON, such as {"history": [50, 181], "hour": 20}, or - to read it from standard input. With
    `user`, what it says takes the place of what is known of them."""
    split: str = "test"
    """test or validation: where `user` is looked up."""
    k: int = 10
    """Length of the list."""
    leave_out_seen: bool = True
    """Whether what is in the history, and of a user all that they had before, is left out of the list."""


@dataclass
class RecommendConfig:
    """configs/recommend.yaml."""

    run: ServedRunConfig = field(default_factory=ServedRunConfig)
    recommend: RecommendationConfig = field(default_factory=RecommendationConfig)
