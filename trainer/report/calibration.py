"""How near the streaming estimate of the items' frequencies came to the truth."""

from dataclasses import dataclass

import numpy as np
import torch

from trainer.report.sample import fixed_sample
from trainer.runtime import checkpoint
from trainer.runtime.loading import SavedRun
from trainer.runtime.training_loss import streaming_frequencies

# N items, S of them

MOST = 5000
OFTEN = 20
"""Training events of an item from which on its estimate can be judged."""


@dataclass(frozen=True)
class Calibration:
    """Of at most 5,000 items that have both shares.

    Attributes:
        estimated_S: float64, share of the positives as the run estimated it.
        true_S: float64, share of the training events.
        unseen: items with training events of which the run has no estimate.
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
    estimated_N = _estimated(run)
    if estimated_N is None:
        return None
    count_N = run.catalog.train_counts()
    true_N = count_N / run.schema.num_events["train"]
    both = np.flatnonzero((estimated_N > 0) & (true_N > 0))
    if not len(both):
        return None
    shown = both[fixed_sample(len(both), MOST)]
    often = both[count_N[both] >= OFTEN]
    half_within = float(np.median(np.abs(estimated_N[often] / true_N[often] - 1))) if len(often) else float("nan")
    unseen = int(((true_N > 0) & (estimated_N == 0)).sum())
    return Calibration(estimated_N[shown], true_N[shown], unseen, half_within)


def _estimated(run: SavedRun) -> np.ndarray | None:
    """float64 [N]; 0 for an item that has not come up."""
    saved = checkpoint.load_rest(run.checkpoint).get("loss", {})
    state = {name.removeprefix("frequencies."): value for name, value in saved.items()}
    if not state:
        return None
    frequencies = streaming_frequencies(run.config.model.loss, len(run.catalog))
    frequencies.load_state_dict(state)
    return frequencies.log_q(torch.arange(len(run.catalog))).double().exp().numpy()
