"""By what a model is known to those who use its embeddings."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from trainer.runtime import checkpoint
from trainer.runtime.loading import SavedRun


def digest(*of: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def model_fingerprint(run: SavedRun) -> str:
    """SHA-256 of all that makes a model's embeddings what they are: its parameters, its settings and its features.

    Exports and query towers carry it: dot products are of embeddings with the same one.

    Raises:
        UserError: the checkpoint has lost its checksums.
    """
    features = [asdict(feature) for feature in run.assembler.features]
    return digest(checkpoint.written_checksums(run.checkpoint), asdict(run.config.model), features)
