"""Titles of the items beside the prepared data."""

from pathlib import Path

import pytest

from tests.shop import events_of, prepare_shop
from trainer.data.titles import read_titles
from trainer.errors import UserError

ITEMS = {"item_id": [1, 2, 3, 4, 5], "name": ["one", None, 'three, "so called"', "", "five"], "shelf": [1, 1, 2, 2, 2]}


def test_titles_of_integer_ids_and_of_numbers(tmp_path: Path) -> None:
    for column, expected in (("name", {1: "one", 3: 'three, "so called"', 4: ""}), ("shelf", {1: "1", 3: "2", 4: "2"})):
        folder = tmp_path / column
        folder.mkdir()
        prepare_shop(folder, events_of(1, 2, 3), ITEMS, title=column)
        asked = [4, 3, 99, 1] + [2] * (column == "name")
        assert read_titles(folder / "out", asked) == expected


def test_a_folder_without_titles(tmp_path: Path) -> None:
    prepare_shop(tmp_path, events_of(1, 2, 3), ITEMS)
    assert not (tmp_path / "out" / "titles.parquet").exists() and read_titles(tmp_path / "out", [1]) == {}
    (tmp_path / "out" / "titles.parquet").write_text("none")
    with pytest.raises(UserError, match="titles.parquet=unreadable: expected columns item_id and title"):
        read_titles(tmp_path / "out", [1])


def test_a_title_that_is_no_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.title=label: expected a column of the items: item_id, name, shelf"):
        prepare_shop(tmp_path, events_of(1, 2, 3), ITEMS, title="label")
    with pytest.raises(UserError, match="data.title=name: expected a column of the items: there are none"):
        prepare_shop(tmp_path, events_of(1, 2, 3), title="name")
