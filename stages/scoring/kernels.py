"""Rows of logits -> records, in numba.

Shape letters: R rows, V vocabulary, W >= V width of a row with its padding, C candidates, N draws,
K room for entries; inside a row B blocks of BLOCK ids and G groups of GROUP blocks.

A row is read twice in a row and then never again: `_load_row` takes the maximum, then computes
e = exp(z - max) with its sum per block of ids, keeping e in a scratch row that stays in the cache.
All that follows (finding the head, the tail mass, inverting the distribution function at given
thresholds) skips groups and blocks by their sums and looks at single ids only where it must.

Arithmetic: z, e and block sums are float32, sums over blocks float64. A sum of non-negative floats
never falls below its largest term, so skipping a block whose sum is below a threshold misses no id.
NaN and infinity are detected, not assumed away: `_FAST` leaves out `nnan` and `ninf`.

All compiled code of the sampler is in this one file: numba's cache notices a change of the file a
function is in, but not of files it calls into.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 256
GROUP = 16

MOST_CANDIDATES = 64
LEAST_TAU = 1 / 128
"""Limits of `stages.config.Record`; together they bound the entries of a record."""

ROOM = 200
"""Room for the entries of a `head_tail` record, at most 1 / tau + 1 + candidates = 193 of them:
each of the h ids of p >= tau takes tau of the mass, and n - 1 < r / tau. One byte counts them."""

OK, NOT_FINITE, IMPOSSIBLE = 0, 1, 2
"""Status of a row: fine; NaN, +inf or nothing but -inf in it; the realised token has p = 0."""

LOG_FLOOR = -1000.0
"""Stored as log p of a candidate the teacher rules out (logit -inf): large, but finite."""

REST_FLOOR = 1e-7
"""Tail mass below which no tail id is drawn; at the same time a bound on the bias this brings."""

_STEP = 32
_LANES = 64
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_LOWEST = -87.0  # exp of less is below the smallest normal float32: flushed to zero


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
    mass = np.float32(0.0)
    dot = np.float32(0.0)
    for i in range(z.shape[0]):
        d = (z[i] - top) * scale
        v: Any = _exp(d)
        e[i] = v
        mass += v
        dot += v * (d if d > lowest else lowest)  # 0 * -87 for a -inf logit, not 0 * -inf
    return mass, dot


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _sum(x: Any) -> Any:
    """Sum of float32 values in float64."""
    total = 0.0
    for i in range(x.shape[0]):
        total += x[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _load_row(z_V: Any, scale: Any, e_V: Any, block_B: Any, group_G: Any) -> Any:
    """Fill the scratch arrays from a row of logits times `scale`.

    Returns:
        (top, Z, dot): the largest logit, sum of e, sum of e * log e, with e relative to the top.
        Z is NaN where the row holds NaN; `top` is infinite where it holds +inf or only -inf.
    """
    top = _row_max(z_V)
    if math.isinf(top):
        return top, 0.0, 0.0
    entropy = 0.0
    for b in range(block_B.shape[0]):
        lo = b * BLOCK
        mass, dot = _exp_block(z_V[lo : lo + BLOCK], top, scale, e_V[lo : lo + BLOCK])
        block_B[b] = mass
        entropy += dot
    for g in range(group_G.shape[0]):
        group_G[g] = _sum(block_B[g * GROUP : (g + 1) * GROUP])
    return top, _total(group_G), entropy


@njit(cache=True, nogil=True, error_model="numpy")
def _total(group_G: Any) -> Any:
    """Sum over the groups, in the order in which `_locate` walks them."""
    mass = 0.0
    for g in range(group_G.shape[0]):
        mass += group_G[g]
    return mass


@njit(cache=True, nogil=True, error_model="numpy")
def _remove(e_V: Any, block_B: Any, group_G: Any, i: Any) -> None:
    """Take id i out of the row; the sums are formed anew, never by subtraction."""
    e_V[i] = np.float32(0.0)
    b = i // BLOCK
    g = b // GROUP
    block_B[b] = _sum(e_V[b * BLOCK : (b + 1) * BLOCK])
    group_G[g] = _sum(block_B[g * GROUP : (g + 1) * GROUP])


@njit(cache=True, nogil=True, error_model="numpy")
def _remove_from(e_V: Any, block_B: Any, group_G: Any, threshold: float, out_K: Any, n: int) -> int:
    """Take every id with e >= threshold out of the row and append it to out_K[:n].

    Returns the new n.
    """
    V = e_V.shape[0]
    for g in range(group_G.shape[0]):
        if group_G[g] < threshold:
            continue
        for b in range(g * GROUP, min(block_B.shape[0], (g + 1) * GROUP)):
            if block_B[b] < threshold:
                continue
            for i in range(b * BLOCK, min(V, (b + 1) * BLOCK)):
                if e_V[i] >= threshold and n < out_K.shape[0]:
                    out_K[n] = i
                    n += 1
                    e_V[i] = np.float32(0.0)
            block_B[b] = _sum(e_V[b * BLOCK : (b + 1) * BLOCK])
        group_G[g] = _sum(block_B[g * GROUP : (g + 1) * GROUP])
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _locate(
    e_V: Any, block_B: Any, group_G: Any, threshold_N: Any, once: bool, id_K: Any, cnt_K: Any
) -> int:
    """Invert the distribution function of the row at ascending thresholds in [0, sum e).

    Threshold x selects the id i with C(i-1) <= x < C(i), C the running sum of e; an id with e = 0
    is never selected.

    Args:
        e_V, block_B, group_G: The row and its sums.
        threshold_N: Ascending thresholds.
        once: Select an id at most once; where rounding would select it twice, take the next one.
        id_K: Receives the selected ids, ascending.
        cnt_K: Receives how often each was selected.

    Returns:
        Number of ids selected.
    """
    V, B, N = e_V.shape[0], block_B.shape[0], threshold_N.shape[0]
    k, n, base = 0, 0, 0.0
    for g in range(group_G.shape[0]):
        top = base + group_G[g]
        if k == N or threshold_N[k] >= top:
            base = top
            continue
        for b in range(g * GROUP, min(B, (g + 1) * GROUP)):
            stop = base + block_B[b]
            if k < N and threshold_N[k] < stop:
                k, n = _locate_in_block(
                    e_V[b * BLOCK : min(V, (b + 1) * BLOCK)],
                    b * BLOCK, base, threshold_N, k, once, id_K, cnt_K, n,
                )  # fmt: skip
            base = stop
        base = top
    return _place_last(e_V, N - k, once, id_K, cnt_K, n) if k < N else n


@njit(cache=True, nogil=True, error_model="numpy")
def _locate_in_block(
    e: Any, first: int, base: float, threshold_N: Any, k: int, once: bool,
    id_K: Any, cnt_K: Any, n: int,
) -> Any:  # fmt: skip
    """`_locate` inside one block whose running sum starts at `base`; returns the new (k, n)."""
    N = threshold_N.shape[0]
    for start in range(0, e.shape[0], _STEP):
        step = e[start : start + _STEP]
        stop = base + _sum(step)
        if k < N and threshold_N[k] < stop:
            for j in range(step.shape[0]):
                base += step[j]
                hits = 0
                while k < N and threshold_N[k] < base and step[j] > 0 and not (once and hits):
                    hits += 1
                    k += 1
                if hits:
                    id_K[n] = first + start + j
                    cnt_K[n] = hits
                    n += 1
        base = stop
    return k, n


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
    _, block_B, group_G = _scratch(e_V.shape[0])
    for b in range(block_B.shape[0]):
        block_B[b] = _sum(e_V[b * BLOCK : (b + 1) * BLOCK])
    for g in range(group_G.shape[0]):
        group_G[g] = _sum(block_B[g * GROUP : (g + 1) * GROUP])
    id_N = np.empty(threshold_N.shape[0], np.int64)
    _locate(e_V, block_B, group_G, threshold_N, True, id_N, np.empty(id_N.shape[0], np.int64))
    return id_N


# ---------------------------------------------------------------------------------------------
# Records, row by row


@njit(cache=True, nogil=True, error_model="numpy")
def _scratch(V: int) -> Any:
    """Scratch arrays of a row: e, sums by block, sums by group."""
    B = (V + BLOCK - 1) // BLOCK
    G = (B + GROUP - 1) // GROUP
    return np.empty(V, np.float32), np.empty(B, np.float32), np.empty(G, np.float64)


@njit(cache=True, nogil=True, error_model="numpy")
def _status(top: float, Z: float, z_realised: float) -> int:
    if math.isinf(top) or math.isnan(Z):
        return NOT_FINITE
    return IMPOSSIBLE if z_realised == -np.inf else OK


@njit(cache=True, nogil=True, error_model="numpy")
def _by_logit(z_V: Any, id_K: Any, n: int) -> None:
    """Sort id_K[:n] by descending logit, equal ones by ascending id; n is small."""
    for a in range(1, n):
        i = id_K[a]
        m = a
        while m > 0 and (
            z_V[id_K[m - 1]] < z_V[i] or (z_V[id_K[m - 1]] == z_V[i] and id_K[m - 1] > i)
        ):
            id_K[m] = id_K[m - 1]
            m -= 1
        id_K[m] = i


@njit(cache=True, nogil=True, error_model="numpy")
def _by_count(id_K: Any, cnt_K: Any, n: int) -> None:
    """Sort id_K[:n], ascending so far, by descending count; stable."""
    for a in range(1, n):
        i, c = id_K[a], cnt_K[a]
        m = a
        while m > 0 and cnt_K[m - 1] < c:
            id_K[m], cnt_K[m] = id_K[m - 1], cnt_K[m - 1]
            m -= 1
        id_K[m], cnt_K[m] = i, c


@njit(cache=True, nogil=True, error_model="numpy")
def sampled_rows(
    z_RW: Any, V: int, scale: Any, tok_R: Any, lp_R: Any, ent_R: Any, status_R: Any
) -> None:
    """Log p of the realised token and entropy of each row.

    Args:
        z_RW: [R, W] float32 logits, rows contiguous; only the first V of a row are looked at.
        scale: One over the temperature, float32.
        tok_R: [R] realised ids, below V.
        lp_R, ent_R: Receive log p of the realised id and the entropy, in nats.
        status_R: Receives OK, NOT_FINITE or IMPOSSIBLE; other outputs of a bad row are undefined.
    """
    e_V, block_B, group_G = _scratch(V)
    for r in range(z_RW.shape[0]):
        z_V = z_RW[r][:V]
        top, Z, dot = _load_row(z_V, scale, e_V, block_B, group_G)
        status_R[r] = _status(top, Z, z_V[tok_R[r]])
        if status_R[r] == OK:
            log_Z = math.log(Z)
            lp_R[r] = (np.float64(z_V[tok_R[r]]) - top) * scale - log_Z
            ent_R[r] = log_Z - dot / Z


@njit(cache=True, nogil=True, error_model="numpy")
def counts_rows(
    z_RW: Any, V: int, scale: Any, tok_R: Any, u_RU: Any, draws: int,
    lp_R: Any, ent_R: Any, status_R: Any, nu_R: Any, ids_RK: Any, cnt_RK: Any,
) -> None:  # fmt: skip
    """Ids and counts of `draws` draws from each row.

    Args:
        z_RW, V, scale, tok_R, lp_R, ent_R, status_R: As for `sampled_rows`.
        u_RU: Uniforms: [R, 1] draws systematically, at (k + u) / N; [R, N], each row ascending,
            draws independently.
        draws: N.
        nu_R: Receives the number of distinct ids.
        ids_RK, cnt_RK: Receive them and their counts, which sum to N, by descending count and
            then ascending id.
    """
    e_V, block_B, group_G = _scratch(V)
    threshold_N = np.empty(draws, np.float64)
    for r in range(z_RW.shape[0]):
        z_V = z_RW[r][:V]
        top, Z, dot = _load_row(z_V, scale, e_V, block_B, group_G)
        status_R[r] = _status(top, Z, z_V[tok_R[r]])
        if status_R[r] != OK:
            continue
        log_Z = math.log(Z)
        lp_R[r] = (np.float64(z_V[tok_R[r]]) - top) * scale - log_Z
        ent_R[r] = log_Z - dot / Z
        if u_RU.shape[1] == 1:
            for k in range(draws):
                threshold_N[k] = (k + u_RU[r, 0]) * Z / draws
        else:
            threshold_N[:] = u_RU[r] * Z
        n = _locate(e_V, block_B, group_G, threshold_N, False, ids_RK[r], cnt_RK[r])
        _by_count(ids_RK[r], cnt_RK[r], n)
        nu_R[r] = n


@njit(cache=True, nogil=True, error_model="numpy")
def head_tail_rows(
    z_RW: Any, V: int, scale: Any, tok_R: Any, cand_RC: Any, tau: float, u_RU: Any,
    lp_R: Any, ent_R: Any, status_R: Any, nu_R: Any, nh_R: Any, rest_R: Any,
    ids_RK: Any, hlp_RK: Any,
) -> None:  # fmt: skip
    """The ids of p >= tau exactly, and a systematic sample of the rest, of each row.

    With H the head and r = p(not H): n = ceil(r / tau) ids are drawn from the tail, each of weight
    t = r / n. Ids with p > t join the head, which changes r, n and t, until there are none. Then
    every tail id has p <= t and is drawn with probability p / t by one uniform, at most once.

    Args:
        z_RW, V, scale, tok_R, lp_R, ent_R, status_R: As for `sampled_rows`.
        cand_RC: Ids forced into the head, whatever their p; at most MOST_CANDIDATES of them,
            repetitions are ignored.
        tau: Probability from which an id is stored exactly, at least LEAST_TAU.
        u_RU: [R, 1] uniforms.
        nu_R, nh_R: Receive the number of entries, and of those in the head.
        rest_R: Receives r, summed over the tail.
        ids_RK: Receives the head by descending p, then the tail ascending.
        hlp_RK: Receives log p of the head.
    """
    e_V, block_B, group_G = _scratch(V)
    head_K = np.empty(ROOM, np.int64)
    threshold_K = np.empty(ROOM, np.float64)
    once_K = np.empty(ROOM, np.uint8)
    for r in range(z_RW.shape[0]):
        z_V = z_RW[r][:V]
        top, Z, dot = _load_row(z_V, scale, e_V, block_B, group_G)
        status_R[r] = _status(top, Z, z_V[tok_R[r]])
        if status_R[r] != OK:
            continue
        log_Z = math.log(Z)
        lp_R[r] = (np.float64(z_V[tok_R[r]]) - top) * scale - log_Z
        ent_R[r] = log_Z - dot / Z
        h = _force(e_V, block_B, group_G, cand_RC[r], head_K)
        h = _remove_from(e_V, block_B, group_G, tau * Z, head_K, h)
        h, n = _settle(e_V, block_B, group_G, tau * Z, REST_FLOOR * Z, head_K, h)
        mass = _total(group_G)
        _by_logit(z_V, head_K, h)
        for m in range(h):
            ids_RK[r, m] = head_K[m]
            log_p = (np.float64(z_V[head_K[m]]) - top) * scale - log_Z
            hlp_RK[r, m] = log_p if log_p > LOG_FLOOR else LOG_FLOOR
        for k in range(n):
            threshold_K[k] = (k + u_RU[r, 0]) * mass / n
        n = _locate(e_V, block_B, group_G, threshold_K[:n], True, ids_RK[r, h:], once_K)
        nu_R[r], nh_R[r], rest_R[r] = h + n, h, min(1.0, mass / Z)


@njit(cache=True, nogil=True, error_model="numpy")
def _force(e_V: Any, block_B: Any, group_G: Any, cand_C: Any, head_K: Any) -> int:
    """Move the candidates from the row to the head; returns how many there are."""
    h = 0
    for c in range(cand_C.shape[0]):
        i = np.int64(cand_C[c])
        known = False
        for m in range(h):
            known = known or head_K[m] == i
        if not known:
            head_K[h] = i
            h += 1
            _remove(e_V, block_B, group_G, i)
    return h


@njit(cache=True, nogil=True, error_model="numpy")
def _settle(
    e_V: Any, block_B: Any, group_G: Any, tau: float, floor: float, head_K: Any, h: int
) -> Any:
    """Move ids above the tail's weight to the head until there are none; returns (h, n).

    `tau` and `floor` are in units of e. The head only grows and each id moved lowers n by one or
    more, so h + n never rises; at n = 1 no id can be above the sum of all.
    """
    while True:
        mass = _total(group_G)
        if mass <= floor:
            return h, 0
        n = math.ceil(mass / tau)
        above = np.nextafter(mass / n, np.inf)
        grown = _remove_from(e_V, block_B, group_G, above, head_K, h)
        if grown == h:
            return h, n
        h = grown
