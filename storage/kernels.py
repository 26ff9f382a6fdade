"""The one compiled loop: stored records to CSR arrays.

The signature is explicit so that read-only views and fresh arrays share one compiled version, and
compilation happens once, at import, into a cache on disk. The loop releases the GIL.

Shape letters: T positions, E entries, H head entries.
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

import math

import numba as nb
import numpy as np
from numba import types

from storage.schema import Array


def _input(element: types.Type) -> types.Array:
    return types.Array(element, 1, "C", readonly=True)


_SIGNATURE = types.void(
    types.int64,
    _input(types.uint8),
    _input(types.uint8),
    _input(types.float32),
    _input(types.uint32),
    _input(types.uint8),
    _input(types.float32),
    types.int64[::1],
    types.int64[::1],
    types.float32[::1],
    types.float32[::1],
    types.boolean[::1],
)


@nb.njit(_SIGNATURE, nogil=True, cache=True)
def decode_records(
    draws: int,
    nu_T: Array,
    nh_T: Array,
    rest_T: Array,
    stored_ids_E: Array,
    cnt_E: Array,
    hlp_H: Array,
    entry_off: Array,
    ids_E: Array,
    weight_E: Array,
    logp_E: Array,
    exact_E: Array,
) -> None:
    """Fill the last five arrays.

    Args:
        draws: N of a `counts` record; 0 for `head_tail`.
        nu_T, nh_T: entries and head entries per position; the caller has checked the sums.
        rest_T: teacher mass outside the head.
        stored_ids_E, cnt_E, hlp_H: the record columns.
        entry_off: [T+1] out.
        ids_E, weight_E, logp_E, exact_E: out. Weights of a position sum to 1 up to float32.
    """
    entry = 0
    head = 0
    for position in range(len(nu_T)):
        entries = nu_T[position]
        known = nh_T[position]
        tail = entries - known
        if known == 0:
            outside = 1.0  # nothing is exact: the sampled ids stand for everything
        elif tail == 0:
            outside = 0.0  # nothing was drawn outside the head: the head stands for everything
        else:
            outside = np.float64(rest_T[position])
        mass = 0.0
        for k in range(known):
            mass += math.exp(np.float64(hlp_H[head + k]))
        scale = (1.0 - outside) / mass if mass > 0.0 else 0.0
        for k in range(entries):
            ids_E[entry] = stored_ids_E[entry]
            if k < known:
                logp_E[entry] = hlp_H[head + k]
                weight_E[entry] = scale * math.exp(np.float64(hlp_H[head + k]))
            else:
                logp_E[entry] = np.nan
                weight_E[entry] = cnt_E[entry] / draws if draws > 0 else outside / tail
            exact_E[entry] = k < known
            entry += 1
        head += known
        entry_off[position + 1] = entry
