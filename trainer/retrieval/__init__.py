"""From a query to a list of items: an index of the item embeddings, by faiss, and the query tower in service."""
