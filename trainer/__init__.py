"""Two-tower retrieval with sharded embedding tables: prepare, train, evaluate, export."""
