import numpy as np
def uniform_rows(seed: int, step: int, num_items: int, how_many: int) -> np.ndarray:
    return np.sort(np.random.default_rng((seed, step)).choice(num_items, how_many, replace=False, shuffle=False)).astype(np.int64)
