"""What `prepare` should make of events, in plain Python."""

import hashlib
from collections.abc import Collection

from hypothesis import strategies as st

from tests.shop import Columns
from trainer.config import SplitConfig
from trainer.data.schema import SPLITS

Event = tuple[int, int, int]  # user, item, timestamp; their order is the order of input
Assigned = tuple[Event, str | None]  # an event and its split; None for an unknown item

EVENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(-5, 5)), min_size=3, max_size=30)


def as_columns(events: list[Event]) -> Columns:
    return dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*events, strict=True)), strict=True))


def md5_lower(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little")


def assign(events: list[Event], known: Collection[int], split: SplitConfig, seed: int = 0) -> dict[int, list[Assigned]]:
    """Each user's events in order of time, and where they go."""
    users: dict[int, list[Assigned]] = {}
    ordered = sorted(events, key=lambda event: event[2])  # stable: ties stay in order of input
    of_known = [event for event in ordered if event[1] in known]
    place = 0
    for event in ordered:
        theirs = users.setdefault(event[0], [])
        assigned = None
        if event[1] in known:
            if split.by == "leave_one_out":
                count = sum(other[0] == event[0] for other in of_known)
                before = sum(name is not None for _, name in theirs)
                last_but_one = "validation" if split.validation else "train"
                assigned = "train" if count < 3 else (["train"] * (count - 2) + [last_but_one, "test"])[before]
            elif split.by == "time":
                test, validation = (round(share * len(of_known)) for share in (split.test, split.validation))
                train = len(of_known) - test - validation
                assigned = (["train"] * train + ["validation"] * validation + ["test"] * test)[place]
            else:
                share = md5_lower(f"{seed}:user:{event[0]}") / 2**64
                held_out = "test" if share < split.test else "validation"
                assigned = held_out if share < split.validation + split.test else "train"
            place += 1
        theirs.append((event, assigned))
    return users


def queries(users: dict[int, list[Assigned]]) -> dict[str, list[tuple[Event, list[Event]]]]:
    """Of each split, the events and those that their users had before."""
    splits: dict[str, list[tuple[Event, list[Event]]]] = {split: [] for split in SPLITS}
    for theirs in users.values():
        for position, (event, split) in enumerate(theirs):
            if split is not None:
                splits[split].append((event, [earlier for earlier, _ in theirs[:position]]))
    return splits


def sequences(users: dict[int, list[Assigned]], length: int, seed: int = 0) -> list[list[Event]]:
    """Rows of the sequences: cut from the last training event backwards, overlapping by one, and shuffled."""
    found: dict[int, list[Event]] = {}
    for user, theirs in users.items():
        trained = [position for position, (_, split) in enumerate(theirs) if split == "train"]
        left = [event for event, _ in theirs[trained[0] : trained[-1] + 1]] if trained else []
        number = 0
        while len(left) > 1:
            found[md5_lower(f"{seed}:{user}:{number}")] = left[-length:]
            left, number = left[: max(len(left) - length + 1, 0)], number + 1
    return [found[key] for key in sorted(found)]
