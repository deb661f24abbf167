"""Two-tower retrieval with sharded embedding tables: prepare, train, evaluate, export."""

import os

# Before torch is imported, which reads it once: what its C++ says beside errors is advice to programmers, such as that
# the search for unused parameters (see runtime/sharding.py) has found none.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Likewise libgomp: turns that a thread waits for the others before it sleeps. Its own 300,000 are over a millisecond,
# which a thread that waits takes from the one that reads ahead: training on two cores lost a quarter, in some runs.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
