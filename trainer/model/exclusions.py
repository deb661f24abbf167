"""Candidates that are no negatives of a query, for its user is known to have chosen them."""

import torch
from torch import Tensor

from trainer.model.loss import Exclusions

# R rows, Q queries, G queries of all ranks, N candidates, H known in all


def with_other_rows_of_the_user(
    known_row: Tensor, known_length: Tensor, user_R: Tensor, user_G: Tensor, positive_row_G: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds to what each row's user is known to have chosen the positives of all queries by the same user.

    Args:
        known_row: int64 [total], catalogue rows, those of one row after another's.
        known_length: int64 [R].
        user_R: int64 [R], the user of each row; 0 for unknown ones, who are not the same.
        user_G: int64 [G], of all queries.
        positive_row_G: int64 [G].

    Returns:
        known_row and known_length with the additions.
    """
    user_sorted_G, order_G = user_G.sort(stable=True)
    begin_R = torch.searchsorted(user_sorted_G, user_R)
    length_R = torch.searchsorted(user_sorted_G, user_R, right=True) - begin_R
    length_R = length_R.masked_fill(user_R == 0, 0)
    owner = torch.repeat_interleave(length_R)
    place = torch.arange(len(owner), device=owner.device) - (length_R.cumsum(0) - length_R)[owner] + begin_R[owner]
    all_owner = torch.cat([torch.repeat_interleave(known_length, output_size=len(known_row)), owner])
    all_row = torch.cat([known_row, positive_row_G[order_G[place]]])
    return all_row[all_owner.argsort(stable=True)], known_length + length_R


def excluded_columns(
    known_row: Tensor, known_length: Tensor, row_N: Tensor, query_row: Tensor | None, seen_Q: Tensor | None
) -> Exclusions:
    """Columns of what each query's user is known to have chosen.

    Args:
        known_row: int64 [total], catalogue rows, those of one row of the batch after another's.
        known_length: int64 [R].
        row_N: int64, catalogue rows of the candidates, ascending.
        query_row: int64 [Q], the row of each query; None where each row is one.
        seen_Q: int64 [Q], how many of its row's count for a query; None where all do.
    """
    column_H = torch.searchsorted(row_N, known_row).clamp(max=len(row_N) - 1)
    there_H = row_N[column_H] == known_row
    before = known_row.new_zeros(len(known_row) + 1)  # columns found before each of the known
    before[1:] = there_H.cumsum(0)
    begin_R = known_length.cumsum(0) - known_length
    begin_Q, length_Q = (value if query_row is None else value[query_row] for value in (begin_R, known_length))
    return Exclusions(column_H[there_H], before[begin_Q], before[begin_Q + (length_Q if seen_Q is None else seen_Q)])
