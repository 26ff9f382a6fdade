"""One row of logits -> one record, in numba.

Shape letters: V vocabulary, B blocks of BLOCK ids, G groups of GROUP blocks, U uniforms, K room for
entries.

A row is read from memory once. `load_row` takes the maximum, then one pass computes e = exp(z - max)
and its sum per block of 64 ids, keeping e in a scratch row that stays in the cache. All that follows
(finding the head, the tail mass, inverting the distribution function at given thresholds) skips
groups and blocks by their sums and looks at single ids only inside the blocks that matter.

Arithmetic: z and e are float32, sums over blocks float64. A sum of non-negative floats never falls
below its largest term, so skipping a block whose sum is below a threshold never misses an id.
NaN and infinity are detected, not assumed away: `fast` below leaves out `nnan` and `ninf`.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 64
GROUP = 32
LANES = 64
ROOM = 255
"""Most entries a record can hold: counts of entries are stored in one byte."""

OK, NOT_FINITE, IMPOSSIBLE = 0, 1, 2
"""Status of a row: fine; NaN, +inf or nothing but -inf in it; the realised token has p = 0."""

LOG_FLOOR = -1000.0
"""Stored log p of a head id whose logit is -inf (a forced candidate the teacher rules out)."""

REST_FLOOR = 1e-7
"""Tail mass below which no tail id is drawn; it bounds the bias this brings."""

_LOWEST = -87.0  # exp of less is below the smallest normal float32: flushed to zero

fast = {"reassoc", "contract", "arcp", "nsz"}


@intrinsic
def _exp(typingctx: Any, x: Any) -> Any:  # pragma: no cover
    """float32 exp(x) for x <= 0, 1 ulp or so, branch-free so that LLVM vectorises the loop around.

    2**t = 2**n * 2**f with n the nearest integer, found by adding 1.5 * 2**23: the sum's low bits
    are n. Its operations carry a harmless flag each, because numba adds `reassoc` to those without
    any, which would cancel the trick. Below `_LOWEST` the result is 0; NaN stays NaN.
    """
    f32, i32 = ir.FloatType(), ir.IntType(32)
    magic = 12582912.0
    coefficients = (1.33335581e-3, 9.61812910e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1, 1.0)

    def const(value: float) -> Any:
        return ir.Constant(f32, float(np.float32(value)))

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        t = b.fmul(args[0], const(1.4426950408889634), flags=("nsz",))
        shifted = b.fadd(t, const(magic), flags=("nsz",))
        f = b.fsub(t, b.fsub(shifted, const(magic), flags=("nsz",)), flags=("nsz",))
        p = const(1.5403530e-4)
        for c in coefficients:
            p = b.fadd(b.fmul(p, f, flags=("contract",)), const(c), flags=("contract",))
        n = b.shl(b.bitcast(shifted, i32), ir.Constant(i32, 23))
        scale = b.bitcast(b.add(n, ir.Constant(i32, 127 << 23)), f32)
        low = b.fcmp_ordered("<", args[0], const(_LOWEST), flags=("nsz",))
        return b.select(low, const(0.0), b.fmul(p, scale, flags=("nsz",)))

    return types.float32(types.float32), codegen


@njit(cache=True, nogil=True, fastmath=fast, error_model="numpy")
def row_max(z_V: Any) -> Any:  # pragma: no cover
    """Largest logit, NaN ignored; independent lanes, since a scalar maximum does not vectorise."""
    V = z_V.shape[0]
    full = V // LANES * LANES
    best = np.float32(-np.inf)
    if full:
        lanes = z_V[:LANES].copy()
        for start in range(LANES, full, LANES):
            for j in range(LANES):
                x = z_V[start + j]
                lanes[j] = x if x > lanes[j] else lanes[j]
        for j in range(LANES):
            best = lanes[j] if lanes[j] > best else best
    for i in range(full, V):
        best = z_V[i] if z_V[i] > best else best
    return best


@njit(cache=True, nogil=True, fastmath=fast, error_model="numpy")
def _exp_block(z: Any, top: Any, scale: Any, e: Any) -> Any:  # pragma: no cover
    """e = exp((z - top) * scale) of one block; returns (sum e, sum e * log e)."""
    total = np.float32(0.0)
    dot = np.float32(0.0)
    for i in range(z.shape[0]):
        d = (z[i] - top) * scale
        v = _exp(d)
        e[i] = v
        total += v
        # a -inf logit contributes 0 * -87, not 0 * -inf
        dot += v * (d if d > np.float32(_LOWEST) else np.float32(_LOWEST))
    return total, dot


@njit(cache=True, nogil=True, error_model="numpy")
def load_row(z_V: Any, scale: Any, e_V: Any, block_B: Any, group_G: Any) -> Any:  # pragma: no cover
    """Fill the scratch arrays from a row of logits times `scale`.

    Returns:
        (top, Z, dot): the largest logit, sum of e (float64), sum of e * log e. Z is NaN where the
        row has a NaN; `top` is infinite where it has +inf or is -inf throughout.
    """
    V = z_V.shape[0]
    top = row_max(z_V)
    dot = 0.0
    if math.isinf(top):
        return top, 0.0, 0.0
    full = V // BLOCK
    for b in range(full):
        lo = b * BLOCK
        s, t = _exp_block(z_V[lo : lo + BLOCK], top, scale, e_V[lo : lo + BLOCK])
        block_B[b] = s
        dot += t
    if full * BLOCK < V:
        s, t = _exp_block(z_V[full * BLOCK :], top, scale, e_V[full * BLOCK :])
        block_B[full] = s
        dot += t
    return top, _sum_groups(block_B, group_G), dot


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_groups(block_B: Any, group_G: Any) -> Any:  # pragma: no cover
    """Sums of blocks per group, in float64; returns their total."""
    total = 0.0
    for g in range(group_G.shape[0]):
        s = 0.0
        for b in range(g * GROUP, min(block_B.shape[0], (g + 1) * GROUP)):
            s += block_B[b]
        group_G[g] = s
        total += s
    return total
