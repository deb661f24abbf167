"""Data without ranks: prepared folders, their reader, and what writes them."""
