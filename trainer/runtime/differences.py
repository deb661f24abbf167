"""What a model and the one it starts from differ in, and which of it may."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from trainer.config import StartConfig, TrainConfig
from trainer.data.schema import Feature, Schema
from trainer.errors import UserError
from trainer.model.two_tower import TwoTower, dense_parameters
from trainer.runtime.run_directory import flat

# Fields that decide which parameters there are, and what each means.
_STRUCTURE = (
    "model.embedding_dim",
    *(f"model.{side}.{name}" for side in ("query", "candidate")
      for name in ("combine", "cross_layers", "hidden", "residual", "layer_norm")),
    *(f"model.history.{name}" for name in ("encoder", "interests", "layers", "heads")),
    "model.loss.learn_temperature",
)  # fmt: skip
# Fields that the comparison of features and tables covers, and those that say how a run goes and not what it learns.
_ELSEWHERE = ("model.query.features", "model.candidate.features", "model.categorical_dim", "model.table_dims")
_OF_THE_RUN = ("optimizer.schedule", "optimizer.warmup_steps")
# Of a feature that keeps its name; `num_embeddings` may grow.
MEANING = ("side", "kind", "table", "hashed", "multi_valued", "weighted", "dim", "encoder", "log1p", "mean", "std")


@dataclass
class Trained:
    """A plain model and all that says what it is."""

    config: TrainConfig
    schema: Schema
    features: tuple[Feature, ...]
    model: TwoTower
    """Only its names and shapes count."""
    tables: dict[str, EmbeddingBagConfig] = field(init=False)
    """By name; the model itself does not know them any more once it is sharded."""

    def __post_init__(self) -> None:
        self.tables = {table.name: table for table in self.model.embeddings.embedding_bag_configs()}


@dataclass(frozen=True)
class Difference:
    """One of two models."""

    text: str
    change: str | None
    """The entry of start.changes that allows it; None for what can never be carried over."""


def refuse_unasked(before: Trained, now: Trained, start: StartConfig) -> None:
    """Compares the model of the run with the one that it starts from.

    Raises:
        UserError: they differ in what start.changes does not name, or what cannot be carried over; all of it is listed.
    """
    found = [one for one in differences(before, now, start.state) if one.change not in start.changes]
    if not found:
        return
    listed = "; ".join(f"{one.text} ({one.change or 'cannot be carried over'})" for one in found)
    needed = sorted({one.change for one in found if one.change} | set(start.changes))
    remedy = f"take these back, or set start.changes=[{','.join(needed)}]"
    if any(one.change is None for one in found):
        remedy = "take back what cannot be carried over, or train anew with start.checkpoint=null"
    raise UserError("start.checkpoint", start.checkpoint, f"a checkpoint of this very model, but {listed}", remedy)


def differences(before: Trained, now: Trained, state: str) -> list[Difference]:
    """All of them.

    Args:
        before: whose checkpoint there is.
        now: of the run that starts from it.
        state: of StartConfig; optimizer, loss and data count where it is all.
    """
    found = [*_of_features(before, now), *_of_tables(before, now), *_of_configs(before.config, now.config, state)]
    if all(one.change for one in found):
        found += _of_layers(before.model, now.model)
    return found


def _of_features(before: Trained, now: Trained) -> Iterator[Difference]:
    old, new = ({feature.name: feature for feature in one.features} for one in (before, now))
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            yield Difference(f"feature {name} is {'gone' if name in old else 'new'}", "features")
            continue
        for setting in MEANING:
            was, is_now = getattr(old[name], setting), getattr(new[name], setting)
            if was != is_now:
                yield Difference(f"feature {name}: {setting} was {was}, is {is_now}", None)
    for name, feature in new.items():
        tower = getattr(now.config.model, feature.side)
        if name not in old and feature.table in before.tables and tower.combine == "sum":
            text = f"feature {name} has a place in the sum of model.{feature.side} at once, of the trained table"
            yield Difference(f"{text} {feature.table}", None)
    for side in ("query", "candidate"):
        inputs, others = (list(getattr(one.model, f"{side}_tower").widths) for one in (now, before))
        tower = getattr(now.config.model, side)
        if inputs != others and tower.hidden is None and tower.combine == "concatenate":
            text = f"model.{side}.hidden=null has no layer that could weigh the inputs {inputs} as {others} were"
            yield Difference(text, None)


def _of_tables(before: Trained, now: Trained) -> Iterator[Difference]:
    for name in sorted(before.tables.keys() & now.tables.keys()):
        old, new = before.tables[name], now.tables[name]
        if old.embedding_dim != new.embedding_dim:
            yield Difference(f"table {name}: width was {old.embedding_dim}, is {new.embedding_dim}", None)
        rows = f"table {name}: rows were {old.num_embeddings:,}, are {new.num_embeddings:,}"
        if any(feature.table == name and feature.hashed for feature in now.features):
            same_ids = (before.schema.user_id_type, before.schema.item_id_type) == (
                now.schema.user_id_type, now.schema.item_id_type)  # fmt: skip
            if old.num_embeddings != new.num_embeddings or not same_ids:
                yield Difference(f"{rows}, and ids are hashed to them", None)
        elif not continues(before.schema, now.schema, name):
            yield Difference(f"table {name}: the data does not continue its vocabulary by data.extends", None)
        elif old.num_embeddings != new.num_embeddings:
            yield Difference(rows, "vocabulary" if new.num_embeddings > old.num_embeddings else None)


def continues(before: Schema, now: Schema, table: str) -> bool:
    """Whether the rows that a table had then mean the same now."""
    lineage = [*now.extends, now.fingerprint]
    if before.fingerprint not in lineage:
        return False
    since = [feature.since for feature in now.features if feature.name == table]  # of its ids
    return max(since, default=0) <= lineage.index(before.fingerprint)


def _of_configs(before: TrainConfig, now: TrainConfig, state: str) -> Iterator[Difference]:
    old, new = flat(asdict(before)), flat(asdict(now))
    for name in sorted(old.keys() & new.keys()):
        change = _change(name, state)
        if old[name] != new[name] and change != "":
            yield Difference(f"{name} was {old[name]}, is {new[name]}", change)


def _change(name: str, state: str) -> str | None:
    """What allows a field to differ: "" for one that always may, None for one that never may."""
    if name in _STRUCTURE:
        return None
    if name.startswith(_ELSEWHERE) or name in _OF_THE_RUN:
        return ""
    counts = ("model.",) if state == "weights" else ("model.", "optimizer.", "data.layout", "data.global_batch_size")
    if not name.startswith(counts) or (state == "weights" and name.startswith("model.loss.")):
        return ""
    return "optimizer" if name == "optimizer.embedding" else "settings"


def _of_layers(before: TwoTower, now: TwoTower) -> Sequence[Difference]:
    """What is left where neither features nor fields tell: a history's positions, or times that the data has not."""
    old, new = dense_parameters(before), dense_parameters(now)
    shapes = [[(n, [*p.shape]) for n, p in one.items() if n.startswith("encoder.")] for one in (old, new)]
    told = [", ".join(f"{n} {shape}" for n, shape in one if (n, shape) not in other)
            for one, other in (shapes, shapes[::-1])]  # fmt: skip
    if any(told):
        return [Difference(f"layers of the history were {told[0] or 'less'}, are {told[1] or 'less'}", None)]
    return []
