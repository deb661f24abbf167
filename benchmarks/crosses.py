"""A shop where only a product of two features tells what is wanted.

A user has a segment, an event happens in a part of the day, an item is of a group, and the three are numbered alike. In
nine events of ten the item is one of the group (segment + part of the day) modulo their number. Whatever one knows of
the segment alone, the part alone or the user, all groups are equally likely. So the likelihood of scores that add what
the segment says of a group to what the part says of it has its maximum where both say nothing.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS, ITEMS_OF_A_GROUP = 8, 20
FOLLOWS = 0.9  # the rest of the events are of any item
CONFIG = """
defaults: [tabular_schema, _self_]
source: {source}
events: events.parquet
items: items.parquet
users: users.parquet
columns: {{timestamp: null}}
features:
  user_id: {{side: query, kind: id}}
  segment: {{side: query, kind: categorical}}
  part_of_day: {{side: query, kind: categorical}}
  item_id: {{side: candidate, kind: id}}
  group: {{side: candidate, kind: categorical}}
"""


def write(folder: Path, users: int, events_per_user: int, seed: int = 0) -> None:
    """Writes users, items and events as Parquet, and data/crosses.yaml, by which trainer.prepare reads them."""
    rng = np.random.default_rng(seed)
    items = KINDS * ITEMS_OF_A_GROUP
    group = rng.permutation(np.arange(items) % KINDS)
    of_group = np.argsort(group, kind="stable").reshape(KINDS, ITEMS_OF_A_GROUP)
    segment = rng.integers(KINDS, size=users)
    user = rng.permutation(np.repeat(np.arange(users), events_per_user))
    part = rng.integers(KINDS, size=len(user))
    wanted = of_group[(segment[user] + part) % KINDS, rng.integers(ITEMS_OF_A_GROUP, size=len(user))]
    item = np.where(rng.random(len(user)) < FOLLOWS, wanted, rng.integers(items, size=len(user)))
    # nobody has an item twice: to have it again would be a preference that a user's row alone can learn
    _, first = np.unique(user * items + item, return_index=True)
    user, item, part = (column[np.sort(first)] for column in (user, item, part))
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in {
        "users": {"user_id": np.arange(users), "segment": segment},
        "items": {"item_id": np.arange(items), "group": group},
        "events": {"user_id": user, "item_id": item, "part_of_day": part},
    }.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "crosses.yaml").write_text(CONFIG.format(source=folder.resolve()))


def best_recall() -> float:
    """Recall, in a list as long as a group, of one who knows the rule."""
    return FOLLOWS + (1 - FOLLOWS) / KINDS
