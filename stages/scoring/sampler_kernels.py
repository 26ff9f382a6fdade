"""Rows of logits -> records, in numba.

Shape letters: R rows, V vocabulary, C candidates, N draws, M copies (independent records of the
same row), K room for entries; inside a row B blocks of BLOCK ids.

`_open_row` reads a row of logits for its maximum and once more for e = exp(z - max), which stays in
a `KernelRow` in the cache with its sum per block of ids. All else (finding the head, the tail
mass, inverting the distribution function at given thresholds) skips blocks by their sums and looks
at single ids only where it must.

Arithmetic: z, e and block sums are float32, sums over blocks float64. A sum of non-negative floats
never falls below its largest term, so skipping a block whose sum is below a threshold misses no id.
NaN and infinity are detected, not assumed away: `_FAST` leaves out `nnan` and `ninf`.

Compiled functions that call each other are all in this file: numba's cache notices a change of the
file a function is in, but not of files it calls into.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from stages.scoring.drawn import LogitRows

BLOCK = 256

ROOM = 200
"""Room for a `head_tail` record of at most 1 / tau + 1 + candidates = 193 entries: each of the h
ids of p >= tau takes tau of the mass, and n - 1 < r / tau. One byte counts them."""

REST_FLOOR = 1e-7
"""Tail mass below which no tail id is drawn; at the same time a bound on the bias this brings."""

_LANES = 64
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_ROUNDING = 1e-4  # bound on the relative error of e, with much to spare
_LOWEST = -87.0  # exp of less is below the smallest normal float32: flushed to zero


class KernelRow(NamedTuple):
    """One row as it is worked on. An id is taken out of it by setting its e to 0."""

    e_V: Any
    """exp(scale * (z - max)), float32."""
    block_B: Any
    """Sums of e by block, float32."""


@intrinsic
def _exp(typingctx: Any, x: Any) -> Any:
    """float32 exp(x) for x <= 0, branch-free so that LLVM vectorises the loop around it.

    2**t = 2**n * 2**f with n the nearest integer, found by adding 1.5 * 2**23: the sum's low bits
    are n. These operations carry a harmless flag each, because numba gives its fast-math flags to
    those without any, and `reassoc` would cancel the trick. Relative error 1e-7 near 0, 4e-6 at
    the far end; below `_LOWEST` the result is 0; NaN stays NaN.
    """
    f32, i32 = ir.FloatType(), ir.IntType(32)
    round_to_int = 12582912.0
    coefficients = (1.33335581e-3, 9.61812910e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1, 1.0)

    def const(value: float) -> Any:
        return ir.Constant(f32, float(np.float32(value)))

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        t = b.fmul(args[0], const(1.4426950408889634), flags=("nsz",))
        shifted = b.fadd(t, const(round_to_int), flags=("nsz",))
        n = b.fsub(shifted, const(round_to_int), flags=("nsz",))
        f = b.fsub(t, n, flags=("nsz",))
        p = const(1.5403530e-4)
        for c in coefficients:
            p = b.fadd(b.fmul(p, f, flags=("contract",)), const(c), flags=("contract",))
        exponent = b.shl(b.bitcast(shifted, i32), ir.Constant(i32, 23))
        power = b.bitcast(b.add(exponent, ir.Constant(i32, 127 << 23)), f32)
        low = b.fcmp_ordered("<", args[0], const(_LOWEST), flags=("nsz",))
        return b.select(low, const(0.0), b.fmul(p, power, flags=("nsz",)))

    return types.float32(types.float32), codegen


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _row_max(z_V: Any) -> Any:
    """Largest logit, NaN ignored; independent lanes, since a scalar maximum does not vectorise."""
    V = z_V.shape[0]
    full = V // _LANES * _LANES
    best = np.float32(-np.inf)
    if full:
        lanes = z_V[:_LANES].copy()
        for start in range(_LANES, full, _LANES):
            for j in range(_LANES):
                x = z_V[start + j]
                lanes[j] = x if x > lanes[j] else lanes[j]
        for j in range(_LANES):
            best = lanes[j] if lanes[j] > best else best
    for i in range(full, V):
        best = z_V[i] if z_V[i] > best else best
    return best


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _exp_block(z: Any, top: Any, scale: Any, e: Any) -> Any:
    """e = exp((z - top) * scale) of one block; returns the sums of e and of e * log e."""
    lowest = np.float32(_LOWEST)
    mass, dot = np.float32(0.0), np.float32(0.0)
    for i in range(z.shape[0]):
        d = (z[i] - top) * scale
        v: Any = _exp(d)
        e[i] = v
        mass += v
        dot += v * (d if d > lowest else lowest)  # 0 * -87 for a -inf logit, not 0 * -inf
    return mass, dot


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _power_sum(z: Any, top: Any, scale: Any) -> Any:
    """Sum of exp((z - top) * scale) over one block."""
    mass = np.float32(0.0)
    for i in range(z.shape[0]):
        v: Any = _exp((z[i] - top) * scale)
        mass += v
    return mass


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _sum(x: Any) -> Any:
    """Sum of float32 values in float64."""
    total = 0.0
    for i in range(x.shape[0]):
        total += x[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _remove(row: Any, i: Any) -> None:
    """Take id i out of the row; the sum is formed anew, never by subtraction."""
    b = i // BLOCK
    row.e_V[i] = np.float32(0.0)
    row.block_B[b] = _sum(row.e_V[b * BLOCK : (b + 1) * BLOCK])


@njit(cache=True, nogil=True, error_model="numpy")
def _remove_from(row: Any, threshold: float, out_K: Any, n: int) -> int:
    """Move every id with e >= threshold from the row to out_K[n:]; returns the new n."""
    for b in range(row.block_B.shape[0]):
        if row.block_B[b] < threshold:
            continue
        e_B = row.e_V[b * BLOCK : (b + 1) * BLOCK]
        for j in range(e_B.shape[0]):
            if e_B[j] >= threshold and n < out_K.shape[0]:
                out_K[n] = b * BLOCK + j
                n += 1
                e_B[j] = np.float32(0.0)
        row.block_B[b] = _sum(e_B)
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _locate(row: Any, threshold_N: Any, once: bool, id_K: Any, cnt_K: Any) -> int:
    """Invert the distribution function of the row at ascending thresholds in [0, sum e).

    Threshold x selects the id i with C(i-1) <= x < C(i), C the running sum of e; an id with e = 0
    is never selected.

    Args:
        row: The row.
        threshold_N: Ascending thresholds.
        once: Select an id at most once; where rounding would select it twice, take the next one.
        id_K: Receives the selected ids, ascending.
        cnt_K: Receives how often each was selected.

    Returns:
        The number of ids selected.
    """
    N, k, n, start = threshold_N.shape[0], 0, 0, 0.0  # k thresholds are done, n ids selected
    for b in range(row.block_B.shape[0]):
        stop = start + row.block_B[b]
        if k < N and threshold_N[k] < stop:
            e_B, cdf = row.e_V[b * BLOCK : (b + 1) * BLOCK], start
            for j in range(e_B.shape[0]):
                cdf += e_B[j]
                hits = 0
                while k < N and threshold_N[k] < cdf and e_B[j] > 0 and not (once and hits):
                    hits += 1
                    k += 1
                if hits:
                    id_K[n], cnt_K[n] = b * BLOCK + j, hits
                    n += 1
        start = stop
    return _place_last(row.e_V, N - k, once, id_K, cnt_K, n) if k < N else n


@njit(cache=True, nogil=True, error_model="numpy")
def _place_last(e_V: Any, left: int, once: bool, id_K: Any, cnt_K: Any, n: int) -> int:
    """Thresholds that rounding put past the end go to the last ids that can take them."""
    before = n - 1
    for i in range(e_V.shape[0] - 1, -1, -1):
        if left == 0:
            break
        if before >= 0 and id_K[before] == i:
            if not once:
                cnt_K[before] += left
                return n
            before -= 1
        elif e_V[i] > 0:
            for m in range(n, before + 1, -1):
                id_K[m] = id_K[m - 1]
                cnt_K[m] = cnt_K[m - 1]
            id_K[before + 1] = i
            cnt_K[before + 1] = 1 if once else left
            left -= cnt_K[before + 1]
            n += 1
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def locate_once(e_V: Any, threshold_N: Any) -> Any:
    """Distinct ids [N] at ascending thresholds in [0, sum e); at least N ids have e > 0."""
    row = _empty_row(e_V.shape[0])
    row.e_V[:] = e_V
    for b in range(row.block_B.shape[0]):
        row.block_B[b] = _sum(e_V[b * BLOCK : (b + 1) * BLOCK])
    id_N = np.empty(threshold_N.shape[0], np.int64)
    _locate(row, threshold_N, True, id_N, np.empty_like(id_N))
    return id_N


@njit(cache=True, nogil=True, error_model="numpy")
def _empty_row(V: int) -> Any:
    """A row of V ids with nothing in it yet."""
    return KernelRow(np.empty(V, np.float32), np.empty((V + BLOCK - 1) // BLOCK, np.float32))


@njit(cache=True, nogil=True, error_model="numpy")
def _open_row(rows: LogitRows, r: int, row: Any) -> Any:
    """Fill `row` from row r of `rows` and write what every record has.

    Returns:
        (z_V, Z): the logits without padding, and the sum of e. Z is NaN where the row holds NaN or
        +inf, or nothing but -inf.
    """
    z_V = rows.z_RW[r][: rows.V]
    top = _row_max(z_V)
    dot, power = 0.0, 0.0
    for b in range(row.block_B.shape[0]):
        z_B, e_B = z_V[b * BLOCK : (b + 1) * BLOCK], row.e_V[b * BLOCK : (b + 1) * BLOCK]
        row.block_B[b], block_dot = _exp_block(z_B, top, rows.scale, e_B)
        dot += block_dot
        if rows.ratio > 0:
            power += _power_sum(z_B, top, rows.scale * rows.ratio)
    Z = _sum(row.block_B)
    log_Z = math.log(Z)
    rows.lse_R[r] = np.float64(top) * rows.scale + log_Z
    rows.ent_R[r] = log_Z - dot / Z
    if rows.ratio > 0:
        rows.lz_R[r] = math.log(power) - rows.ratio * log_Z
    return z_V, Z


@njit(cache=True, nogil=True, error_model="numpy")
def open_rows(rows: LogitRows) -> None:
    """Write what every record has, and no entries."""
    row = _empty_row(rows.V)
    for r in range(rows.z_RW.shape[0]):
        _open_row(rows, r, row)


@njit(cache=True, nogil=True, error_model="numpy")
def counts_rows(rows: LogitRows, u_RMN: Any, nu_RM: Any, ids_RK: Any, cnt_RK: Any) -> None:
    """Ids and counts of N draws from each row, M times over.

    Args:
        u_RMN: Ascending in the last axis, in [0, 1]: where the distribution function is inverted.
        nu_RM: Receives the number of distinct ids of each copy.
        ids_RK, cnt_RK: Receive them, ascending in each copy, and their counts; M * N places.
    """
    row = _empty_row(rows.V)
    for r in range(rows.z_RW.shape[0]):
        _, Z = _open_row(rows, r, row)
        if math.isnan(Z):
            continue
        end = 0
        for m in range(u_RMN.shape[1]):
            n = _locate(row, u_RMN[r, m] * Z, False, ids_RK[r, end:], cnt_RK[r, end:])
            nu_RM[r, m] = n
            end += n


@njit(cache=True, nogil=True, error_model="numpy")
def head_tail_rows(
    rows: LogitRows, cand_RC: Any, tau: float, tail_floor: float, u_RM: Any, nu_RM: Any,
    nh_R: Any, rest_R: Any, ids_RK: Any,
) -> None:  # fmt: skip
    """The ids of p >= tau exactly, and M systematic samples of the rest, of each row.

    With H the head and r = p(not H): n = ceil(r / tau) ids are drawn from the tail, each of weight
    t = r / n. Ids with p > t join the head, which changes r, n and t, until there are none. Then
    every tail id has p <= t and is drawn with probability p / t by one uniform, at most once.

    Where n = 1 and r < `tail_floor`, t is `tail_floor`, and nothing is drawn with probability
    1 - r / t. A reader gives the head what the tail has not: 1 - t or 1, in the mean 1 - r.

    Args:
        cand_RC: Ids forced into the head, at most 64 of them; repetitions are ignored.
        tau: Probability from which an id is stored exactly, at least 1 / 128.
        tail_floor: Least weight of the one id of a tail, at most tau; 0 leaves no tail out.
        u_RM: Uniforms, one for each copy.
        nu_RM, nh_R: Receive the number of entries of each copy, and of those in the head.
        rest_R: Receives r, summed over the tail.
        ids_RK: Receives the head, then the tail of each copy ascending; M * ROOM places.
    """
    row = _empty_row(rows.V)
    threshold_K = np.empty(ROOM, np.float64)
    once_K = np.empty(ROOM, np.uint8)
    for r in range(rows.z_RW.shape[0]):
        _, Z = _open_row(rows, r, row)
        if math.isnan(Z):
            continue
        head_K, h = ids_RK[r, :ROOM], 0
        for i in cand_RC[r]:
            if not np.any(head_K[:h] == i):
                head_K[h] = i
                h += 1
                _remove(row, i)
        h = _remove_from(row, tau * Z, head_K, h)
        h, n = _settle(row, tau * Z, REST_FLOOR * Z, head_K, h)
        mass = _sum(row.block_B)
        nh_R[r], rest_R[r] = h, min(1.0, mass / Z)
        end, floor = h, tail_floor * Z if n == 1 else 0.0
        for m in range(u_RM.shape[1]):
            if u_RM[r, m] * floor >= mass:
                nu_RM[r, m] = h
                continue
            for k in range(n):
                threshold_K[k] = (k + u_RM[r, m]) * max(mass, floor) / n
            drawn = _locate(row, threshold_K[:n], True, ids_RK[r, end:], once_K)
            nu_RM[r, m] = h + drawn
            end += drawn


@njit(cache=True, nogil=True, error_model="numpy")
def top_k_rows(rows: LogitRows, rest_R: Any, ids_RK: Any) -> None:
    """The K likeliest ids of each row, at most V, and the mass outside, summed there.

    Args:
        rest_R: Receives the mass.
        ids_RK: Receives the ids by descending logit, equal ones by ascending id.
    """
    row = _empty_row(rows.V)
    for r in range(rows.z_RW.shape[0]):
        z_V, Z = _open_row(rows, r, row)
        if math.isnan(Z):
            continue
        _find_top(z_V, row, ids_RK[r])
        for i in ids_RK[r]:
            _remove(row, i)
        rest_R[r] = min(1.0, _sum(row.block_B) / Z)


@njit(cache=True, nogil=True, error_model="numpy")
def _find_top(z_V: Any, row: Any, top_K: Any) -> None:
    """Fill top_K with the ids of the largest logits, descending, equal ones by ascending id.

    Ids come in ascending order, so one that equals the last place never displaces it.
    """
    K, n, bar = top_K.shape[0], 0, 0.0  # n places are filled; e must reach bar to enter
    z_K = np.full(K, -np.inf, np.float32)
    for b in range(row.block_B.shape[0]):
        z_B = z_V[b * BLOCK : (b + 1) * BLOCK]
        if row.block_B[b] < bar or (n == K and _row_max(z_B) <= z_K[K - 1]):
            continue
        for i in range(z_B.shape[0]):
            if n == K and z_B[i] <= z_K[K - 1]:
                continue
            m = n if n < K else K - 1
            while m > 0 and z_K[m - 1] < z_B[i]:
                z_K[m], top_K[m] = z_K[m - 1], top_K[m - 1]
                m -= 1
            z_K[m], top_K[m] = z_B[i], b * BLOCK + i
            n = min(n + 1, K)
        if n == K:
            bar = (1 - _ROUNDING) * row.e_V[top_K[K - 1]]


@njit(cache=True, nogil=True, error_model="numpy")
def _settle(row: Any, tau: float, floor: float, head_K: Any, h: int) -> Any:
    """Move ids above the tail's weight to the head until there are none; returns (h, n).

    `tau` and `floor` are in units of e. The head only grows and each id moved lowers n by one or
    more, so h + n never rises; at n = 1 no id can be above the sum of all.
    """
    while True:
        mass = _sum(row.block_B)
        if mass <= floor:
            return h, 0
        n = math.ceil(mass / tau)
        above = np.nextafter(mass / n, np.inf)
        grown = _remove_from(row, above, head_K, h)
        if grown == h:
            return h, n
        h = grown
