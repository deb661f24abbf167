import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.shop import candidate, catalog, events_of, prepare_shop, query, rows, sequences
from trainer.config import FeatureConfig
from trainer.data import text_model
from trainer.errors import UserError

TITLES = ["red pen", None, " \n", "red pen", "a cup"]
ITEMS = {"item_id": [1, 2, 3, 4, 5], "title": TITLES}


class LettersModel:
    """Stands in for SentenceTransformer: a text's vector is how many letters a to d it has, times `scale.json`."""

    max_seq_length = 9
    encoded: ClassVar[list[str]] = []

    def __init__(self, folder: str, local_files_only: bool) -> None:
        assert local_files_only
        self.scale = float((Path(folder) / "scale.json").read_text())

    def encode(self, texts: list[str], **settings: Any) -> np.ndarray:
        self.encoded.extend(texts)
        return np.array([[text.count(letter) * self.scale for letter in "abcd"] for text in texts], np.float32)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that the stand-in loads."""
    library = ModuleType("sentence_transformers")
    library.__spec__ = ModuleSpec("sentence_transformers", None)
    library.SentenceTransformer = LettersModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setattr(LettersModel, "encoded", [])
    return written(tmp_path / "model", "0.1")


def written(folder: Path, scale: str) -> Path:
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "scale.json").write_text(scale)
    return folder


def letters(text: str | None, scale: float, dtype: str = "float32") -> list[float]:
    return (np.array([(text or "").count(letter) for letter in "abcd"], np.float32) * scale).astype(dtype).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_distinct_text_is_encoded_once(
    tmp_path: Path, model: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    events = events_of(1, 2, events=5) | {"words": ["a", "bad", "cab", "dad", "abacad"] * 2}
    users = {"user_id": [1], "motto": ["bc"]}
    text = {"encoder": str(model), "dtype": dtype}
    features = {"title": candidate("text", **text), "words": query("text", **text), "motto": query("text", **text)}
    schema = prepare_shop(tmp_path, events, ITEMS, users, features, layouts=["event", "sequence"])
    probes = ["text"] * 3  # for the width
    assert sorted(LettersModel.encoded) == sorted(
        [*probes, "red pen", "a cup", "a", "bad", "cab", "dad", "abacad", "bc"]
    )
    assert {(one.dim, one.dtype, one.kind) for one in schema.features if one.name in features} == {(4, dtype, "vector")}
    stored = {row["raw_item_id"]: row["title"] for row in catalog(tmp_path)}
    assert stored == {item: letters(title, 0.1, dtype) for item, title in enumerate(TITLES, 1)}
    for row in rows(tmp_path, "test"):
        assert row["words"] == letters("abacad", 0.1, dtype)
        assert row["motto"] == letters("bc" if row["raw_user_id"] == 1 else None, 0.1, dtype)
    for row in sequences(tmp_path):
        assert row["words"] == [letters(text, 0.1, dtype) for text in ("a", "bad", "cab")]
    assert "feature title: 2 distinct texts encoded, 9 tokens of each at most" in capsys.readouterr().out


def test_a_package_holds_a_model(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "letters_of_a_text"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model.rename(package / "model")
    assert text_model.find_model("encoder", "letters-of-a-text") == package / "model"


def test_an_extended_folder_keeps_its_encoder(tmp_path: Path, model: Path) -> None:
    def run(name: str, extends: str | None, **settings: Any) -> None:
        (tmp_path / name).mkdir()
        prepare_shop(tmp_path / name, events_of(1, events=5), ITEMS, features={"title": candidate(**settings)},
                     extends=extends and str(tmp_path / extends / "out"))  # fmt: skip

    run("hashed", None, kind="text", dim=4)
    run("old", None, kind="text", encoder=str(model))
    run("new", "old", kind="text", encoder=str(model.rename(tmp_path / "elsewhere")))
    other = written(tmp_path / "other", "0.2")
    for number, (extends, settings, message) in enumerate(
        [
            (
                "old",
                {"kind": "text", "encoder": str(other)},
                r"encoder=sentence-transformers \w{32}: expected sentence-tr",
            ),
            ("old", {"kind": "text", "dim": 4}, r"title.encoder=hashed words: expected sentence-transformers"),
            (
                "hashed",
                {"kind": "text", "encoder": str(other)},
                r"encoder=sentence-trans.*: expected hashed words, as in",
            ),
            ("old", {"kind": "vector"}, r"title.kind=vector: expected text, as in"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            run(f"refused-{number}", extends, **settings)


def refused(tmp_path: Path, message: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=message):
        prepare_shop(
            tmp_path, events_of(1, events=5), ITEMS, features={"title": FeatureConfig("candidate", **settings)}
        )
    assert not (tmp_path / "out").exists()


def test_errors(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = str(tmp_path / "nowhere")
    refused(tmp_path, r"title.encoder=.*nowhere, with modules.json in no folder of it", kind="text", encoder=nowhere)
    refused(tmp_path, r"title.encoder=json, with modules.json in no folder of it", kind="text", encoder="json")
    refused(tmp_path, r"title.dim=8: expected no width", kind="text", encoder=str(model), dim=8)
    refused(tmp_path, r"title.encoder=.*model: expected kind text for it", kind="vector", encoder=str(model))
    (model / "scale.json").write_text("1e5")
    large = r"title.encoder=.*model: expected a model whose vectors are finite in float16"
    refused(tmp_path, large, kind="text", encoder=str(model), dtype="float16")
    (model / "scale.json").write_text("spoiled")
    refused(tmp_path, r"a sentence-transformers model that loads \(could not", kind="text", encoder=str(model))
    written(model / "second", "1")
    refused(tmp_path, r"modules.json in .*model, .*second: expected one", kind="text", encoder=str(model))
    monkeypatch.setattr(text_model, "find_spec", lambda name: None)
    refused(tmp_path, r"title.encoder=.*Remedy: pip install '.\[text\]'", kind="text", encoder=str(model))


@pytest.mark.slow
def test_a_real_model_s_vectors_are_what_it_makes_of_each_text_alone(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs the extra text")
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "pen", "a", "cup", "and", "another"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = tmp_path / "bert"
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=32)  # fmt: skip
    transformers.BertModel(config).save_pretrained(bert)
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(bert)
    real = library.SentenceTransformer(str(bert), device="cpu")  # adds the pooling
    real.save(str(tmp_path / "model"))
    titles = ["red pen", "a cup and another cup and a red pen", "red pen", "another", None]
    features = {"title": candidate("text", encoder=str(tmp_path / "model"))}
    prepare_shop(tmp_path, events_of(1, events=5), ITEMS | {"title": titles}, features=features)
    stored = {row["raw_item_id"]: row["title"] for row in catalog(tmp_path)}
    for item, title in enumerate(titles, 1):
        expected = np.zeros(16) if title is None else real.encode([title])[0]
        np.testing.assert_allclose(stored[item], expected, atol=1e-5)
    assert np.ptp(stored[1]) > 0.1
