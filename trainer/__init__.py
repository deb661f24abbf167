"""Two-tower retrieval with sharded embedding tables: prepare, train, evaluate, export."""

import os

# Before torch is imported, which reads it once: what its C++ says beside errors is advice to programmers, such as that
# the search for unused parameters (see runtime/sharding.py) has found none.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
