"""How near the streaming estimate of the items' frequencies came to the truth."""

from dataclasses import dataclass

import numpy as np
import torch

from trainer.report.sample import MOST_ITEMS, fixed_sample
from trainer.runtime import saved_model
from trainer.runtime.loading import SavedRun
from trainer.runtime.training_loss import streaming_frequencies

# S items

OFTEN = 20
"""Training events of an item from which on its estimate can be judged."""


@dataclass(frozen=True)
class Calibration:
    """Of items that have both shares, from a sample of at most 5,000 that have training events.

    Attributes:
        estimated_S: float64, share of the positives as the run estimated it.
        true_S: float64, share of the training events.
        unseen: items of the sample of which the run has no estimate.
        half_within: of items with 20 training events or more, half have an estimate that differs from the truth by at
            most this share of it; NaN where there are none.
    """

    estimated_S: np.ndarray
    true_S: np.ndarray
    unseen: int
    half_within: float


def calibration(run: SavedRun) -> Calibration | None:
    """Compares the estimate in a run's checkpoint with the catalogue's counts.

    Returns:
        None where the checkpoint has no estimate, or has it of no item.
    """
    count_N = run.catalog.train_counts()
    trained = np.flatnonzero(count_N)
    row_S = trained[fixed_sample(len(trained), MOST_ITEMS)]
    estimated_S = _estimated(run, row_S)
    if estimated_S is None or not estimated_S.any():
        return None
    has_both_S = estimated_S > 0
    count_S, estimated_S = count_N[row_S[has_both_S]], estimated_S[has_both_S]
    true_S = count_S / run.schema.num_events["train"]
    error_S = np.abs(estimated_S / true_S - 1)[count_S >= OFTEN]
    half_within = float(np.median(error_S)) if len(error_S) else float("nan")
    return Calibration(estimated_S, true_S, int((~has_both_S).sum()), half_within)


def _estimated(run: SavedRun, row_S: np.ndarray) -> np.ndarray | None:
    """float64 [S]; 0 for an item that has not come up."""
    saved = saved_model.load_rest(run.checkpoint).get("loss", {})
    state = {name.removeprefix("frequencies."): value for name, value in saved.items()}
    if not state:
        return None
    frequencies = streaming_frequencies(run.config.model.loss, len(run.catalog))
    frequencies.load_state_dict(state)
    return frequencies.log_q(torch.from_numpy(row_S)).double().exp().numpy()
