"""A sentence-transformers model that lies on this machine: found, told from others, and run; nothing is downloaded."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.engine import shortened
from trainer.errors import UserError

BATCH = 64
MANIFEST = "modules.json"  # of which modules a model consists; every sentence-transformers model has it
_DIGESTED = (".json", ".txt", ".model", ".safetensors", ".bin")
_CHUNK = 1 << 20


def find_model(where: str, encoder: str) -> Path:
    """The folder of a model.

    Args:
        where: the setting that names it.
        encoder: that folder, or an installed package that holds it.

    Raises:
        UserError: there is no such model, or sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        raise UserError(where, encoder, "sentence-transformers, which is not installed, to run it",
                        "pip install '.[text]'")  # fmt: skip
    package, roots = encoder.replace("-", "_"), [Path(encoder)]
    if not roots[0].is_dir() and package.isidentifier():
        spec = find_spec(package)
        roots = [Path(root) for root in (spec and spec.submodule_search_locations) or []]
    found = [path.parent for root in roots for path in sorted(root.rglob(MANIFEST))]
    if len(found) != 1:
        there = ", ".join(str(path) for path in found[:5]) or "no folder of it"
        raise UserError(where, f"{encoder}, with {MANIFEST} in {there}",
                        f"one sentence-transformers model, with its {MANIFEST}, in a folder or an installed package",
                        f"set {where} to such a folder: nothing is downloaded")  # fmt: skip
    return found[0]


def model_name(folder: Path) -> str:
    """What tells a model from any other, wherever it lies: a digest of its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _DIGESTED and path.is_file():
            content = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    content.update(chunk)
            digest.update(f"{path.relative_to(folder).as_posix()} {content.hexdigest()}\n".encode())
    return f"sentence-transformers {digest.hexdigest()[:32]}"


class TextModel:
    """Encodes texts.

    Args:
        where: the setting that names it.
        folder: that holds it.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, where: str, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer  # optional, and slow to import

        self._where, self._folder = where, folder
        try:
            self._model = SentenceTransformer(str(folder), local_files_only=True)
        except Exception as error:  # damage surfaces as any kind of error
            raise UserError(where, folder, f"a sentence-transformers model that loads ({shortened(str(error))})",
                            "write its files anew, or name another") from error  # fmt: skip
        self.dim = self(["text"]).shape[1]
        """Width of the vectors."""
        self.max_tokens: int | None = self._model.max_seq_length
        """How much it reads of a text; None for all."""

    def __call__(self, texts: list[str], dtype: str = "float32") -> NDArray[np.floating]:
        """[len(texts), dim] vectors as the model makes them.

        Raises:
            UserError: one is not finite in that dtype.
        """
        with np.errstate(over="ignore"):  # told below
            vectors = self._model.encode(texts, batch_size=BATCH, show_progress_bar=False).astype(dtype)
        if not np.isfinite(vectors).all():
            raise UserError(self._where, self._folder, f"a model whose vectors are finite in {dtype}",
                            "set dtype=float32 beside it, or name another")  # fmt: skip
        return vectors
