"""The order of entries within a record, in numba; these few functions call no others.

Shape letters: R rows, W width of a row with its padding, M copies, K room for entries.
"""

from typing import Any

from numba import njit


@njit(cache=True, nogil=True)
def order_heads(z_RW: Any, nh_R: Any, ids_RK: Any) -> None:
    """Sort the first nh[r] ids of row r by descending logit, equal ones by ascending id."""
    for r in range(nh_R.shape[0]):
        z_W, ids_K = z_RW[r], ids_RK[r]
        for a in range(1, nh_R[r]):
            i = ids_K[a]
            k = a
            while k > 0 and (
                z_W[ids_K[k - 1]] < z_W[i] or (z_W[ids_K[k - 1]] == z_W[i] and ids_K[k - 1] > i)
            ):
                ids_K[k] = ids_K[k - 1]
                k -= 1
            ids_K[k] = i


@njit(cache=True, nogil=True)
def order_counts(nu_RM: Any, ids_RK: Any, cnt_RK: Any) -> None:
    """Sort the ids of each copy, ascending so far, by descending count; stable."""
    for r in range(nu_RM.shape[0]):
        start = 0
        for m in range(nu_RM.shape[1]):
            stop = start + nu_RM[r, m]
            for a in range(start + 1, stop):
                i, count = ids_RK[r, a], cnt_RK[r, a]
                k = a
                while k > start and cnt_RK[r, k - 1] < count:
                    ids_RK[r, k], cnt_RK[r, k] = ids_RK[r, k - 1], cnt_RK[r, k - 1]
                    k -= 1
                ids_RK[r, k], cnt_RK[r, k] = i, count
            start = stop
