"""The two works with TensorFlow Recommenders: its model and retrieval task, tf.data, Keras' compiled `fit`.

For throughput.py, in an environment of its own (tensorflow-cpu, tf-keras, tensorflow-recommenders, pyarrow):

    TF_USE_LEGACY_KERAS=1 python benchmarks/peer_tfrs.py ids FILE

TensorFlow reads no Parquet, so Arrow's batches go through a generator. Its Adagrad keeps state for each element.
"""

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from works import (
    BATCH,
    CATEGORICAL_DIM,
    CATEGORICALS,
    DENSE_RATE,
    DIM,
    HIDDEN,
    ITEM_CATEGORIES,
    ITEM_NUMERICS,
    ITEMS,
    NUMERICS,
    TABLE_RATE,
    TEMPERATURE,
    USERS,
    Batch,
    batches,
    peer_arguments,
    tell,
)

layers, optimizers = tf.keras.layers, tf.keras.optimizers.legacy


def table(rows: int, dim: int) -> Any:
    made = layers.Embedding(rows + 1, dim, embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=0.05))
    made.build(None)
    return made


class TwoTower(tfrs.Model):
    def __init__(self, work: str) -> None:
        super().__init__()
        self.has_features = work == "features"
        self.user, self.item = table(USERS, DIM), table(ITEMS, DIM)
        if self.has_features:
            sizes = CATEGORICALS | {"item_category": ITEM_CATEGORIES}
            self.categoricals = {name: table(size, CATEGORICAL_DIM) for name, size in sizes.items()}
        self.query_layers, self.item_layers = self.tower(), self.tower()
        mean = tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum_over_batch_size")
        self.task = tfrs.tasks.Retrieval(loss=mean, temperature=TEMPERATURE)

    def tower(self) -> Any:
        hidden = [layers.Dense(HIDDEN, activation="relu")] if self.has_features else []
        return tf.keras.Sequential([*hidden, layers.Dense(DIM)])

    def compute_loss(self, batch: dict[str, Any], training: bool = False) -> Any:
        query, item = self.user(batch["user_id"]), self.item(batch["item_id"])
        if self.has_features:
            of_query = [self.categoricals[name](batch[name]) for name in CATEGORICALS]
            query = tf.concat([query, self.mean_history(batch), *of_query, batch["query_dense"]], 1)
            item = tf.concat([item, self.categoricals["item_category"](batch["item_category"]), batch["item_dense"]], 1)
        query, item = (tf.math.l2_normalize(tower, 1) for tower in (self.query_layers(query), self.item_layers(item)))
        return self.task(query, item, compute_metrics=False)

    def mean_history(self, batch: dict[str, Any]) -> Any:
        """The mean of each list, zero for an empty one; each distinct row is fetched once."""
        distinct, place = tf.unique(batch["history"])
        rows = tf.gather(self.item.embeddings, distinct)
        return tf.sparse.segment_mean(rows, place, batch["history_owner"], num_segments=tf.shape(batch["user_id"])[0])


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Dense columns side by side; of the history its values, and whose each is."""
    found = {
        name: column for name, column in batch.items() if not isinstance(column, tuple) and column.dtype.kind == "i"
    }
    if "history" in batch:
        found["history"], offsets = batch["history"]
        found["history_owner"] = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        found["query_dense"] = np.stack([batch[name] for name in NUMERICS], 1)
        found["item_dense"] = np.concatenate([*(batch[name][:, None] for name in ITEM_NUMERICS), batch["item_text"]], 1)
    return found


def dataset(rows: Iterator[dict[str, np.ndarray]]) -> Any:
    first = next(rows)
    signature = {name: tf.TensorSpec((None, *column.shape[1:]), column.dtype) for name, column in first.items()}
    return tf.data.Dataset.from_generator(lambda: itertools.chain([first], rows), output_signature=signature).prefetch(
        tf.data.AUTOTUNE
    )


class Clock(tf.keras.callbacks.Callback):
    """Times what follows the first twenty steps, and ends the training when the time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds, self._began, self._first = seconds, 0.0, 0
        self.found: dict[str, float] = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        if not self._began:
            if batch >= 19:
                self._began, self._first = now, batch
        elif now - self._began > self._seconds:
            rate = (batch - self._first) * BATCH / (now - self._began)
            self.found = {"examples_per_second": rate, "steps": batch + 1, "loss": (logs or {})["loss"]}
            self.model.stop_training = True


def main() -> None:
    arguments = peer_arguments().parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.random.set_seed(0)
    model = TwoTower(arguments.work)
    rows = dataset(map(arrays, batches(arguments.file, arguments.work, BATCH)))
    model.compute_loss(next(iter(rows)))  # builds the layers
    tables = {id(v) for m in model.submodules if isinstance(m, layers.Embedding) for v in m.trainable_variables}
    model.compile(
        optimizer=tfrs.experimental.optimizers.CompositeOptimizer([
            (optimizers.Adagrad(TABLE_RATE, initial_accumulator_value=0.0, epsilon=1e-8),
             lambda: [v for v in model.trainable_variables if id(v) in tables]),
            (optimizers.Adam(DENSE_RATE), lambda: [v for v in model.trainable_variables if id(v) not in tables]),
        ]),
        steps_per_execution=10,
    )  # fmt: skip
    clock = Clock(arguments.seconds)
    model.fit(rows, steps_per_epoch=10**6, verbose=0, callbacks=[clock])
    tell(clock.found)


if __name__ == "__main__":
    main()
