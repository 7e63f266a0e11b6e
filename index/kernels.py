"""The loops over centroids, on CPU: compiled by numba at first use and kept in its cache. (``index.scoring`` has those
over vectors.)

Everything here is single-threaded and lets other Python threads run (``nogil``); ``index.threads`` splits the work.
``index.plain`` does the same in torch, and the tests hold them together. Arrays are flat and contiguous:

tile      32 rows of integers for ``dot4``: [groups of 4 dimensions, 32 rows, 4] int8
table     one byte per centroid and row: [tiles, K, 32] uint8
"""

from __future__ import annotations

import numba
import numpy as np

from index import simd
from index.simd import dot4, load, load_int, splat, splat4, splat_int, store

TILE = 32
jit = numba.njit(nogil=True, cache=True, error_model="numpy")
simd.forget_stale_code(__file__)
LOWEST = np.int32(-(2**31))


@jit
def make_tile(rows, first, dim, levels, shared, tile, scales):
    """Rows first .. first + 31 of rows [n, dim] float32 as integers in [-levels, levels].

    shared: the factor of all rows; 0 gives every row its own, whose inverse goes to scales[row].
    """
    tile[:] = 0
    for r in range(min(TILE, len(rows) - first)):
        scale = shared
        if scale == 0:
            top = np.float32(0)
            for d in range(dim):
                top = max(top, abs(rows[first + r, d]))
            scale = np.float32(levels) / top if top > 0 else np.float32(0)
            scales[r] = top / np.float32(levels)
        for d in range(dim):
            tile[(d // 4) * 128 + r * 4 + d % 4] = np.int8(np.rint(rows[first + r, d] * scale))


@jit
def four_products(vectors, r, last, width, tile, first0, first1):
    """Products of vectors r .. r + 3 (none beyond ``last``) with the 32 rows of a tile, in eight registers.

    vectors: rows of ``width`` bytes, unsigned. first0, first1: what the sums of the two halves of the rows begin with.
    """
    p0, p1 = r * width, min(r + 1, last) * width
    p2, p3 = min(r + 2, last) * width, min(r + 3, last) * width
    a0, a1, b0, b1, c0, c1, d0, d1 = first0, first1, first0, first1, first0, first1, first0, first1
    for g in range(width // 4):
        x, y = load_int(tile, g * 128), load_int(tile, g * 128 + 64)
        v = splat4(vectors, p0 + 4 * g)
        a0, a1 = dot4(a0, v, x), dot4(a1, v, y)
        v = splat4(vectors, p1 + 4 * g)
        b0, b1 = dot4(b0, v, x), dot4(b1, v, y)
        v = splat4(vectors, p2 + 4 * g)
        c0, c1 = dot4(c0, v, x), dot4(c1, v, y)
        v = splat4(vectors, p3 + 4 * g)
        d0, d1 = dot4(d0, v, x), dot4(d1, v, y)
    return a0, a1, b0, b1, c0, c1, d0, d1


@jit
def excess(width, tile):
    """128 times the sums of a tile's rows: what the 128 that makes a vector's bytes unsigned adds to its products."""
    sum0 = sum1 = splat_int(np.int32(0))
    all128 = splat_int(np.int32(-2139062144))  # four bytes of 128
    for g in range(width // 4):
        sum0 = dot4(sum0, all128, load_int(tile, g * 128))
        sum1 = dot4(sum1, all128, load_int(tile, g * 128 + 64))
    return sum0, sum1


@jit
def centroid_products(centroids, width, tile, start, stop, out):
    """Integer products of centroids start .. stop - 1 with one tile -> out [K, 32] int32.

    centroids: [K, width] uint8, each integer plus 128.
    """
    zero, (sum0, sum1) = splat_int(np.int32(0)), excess(width, tile)
    first0, first1 = simd.sub_int(zero, sum0), simd.sub_int(zero, sum1)
    k = start
    while k < stop:
        a0, a1, b0, b1, c0, c1, d0, d1 = four_products(centroids, k, stop - 1, width, tile, first0, first1)
        # The last ones may repeat a centroid: written from the back, each ends with its own product.
        at = min(k + 3, stop - 1) * TILE
        store(out, at, d0)
        store(out, at + 16, d1)
        at = min(k + 2, stop - 1) * TILE
        store(out, at, c0)
        store(out, at + 16, c1)
        at = min(k + 1, stop - 1) * TILE
        store(out, at, b0)
        store(out, at + 16, b1)
        store(out, k * TILE, a0)
        store(out, k * TILE + 16, a1)
        k += 4


@jit
def nearest(points, dim, levels, centroids, width, bias, start, stop, codes):
    """codes[i] = argmax over k of points[i] . centroid k - bias[k], for the tiles start .. stop - 1 of points [n, D].

    centroids as in ``centroid_products``; bias [K] float32 in units of their integers times the points.
    """
    tile = np.empty(width * TILE, np.int8)
    scales = np.empty(TILE, np.float32)
    found = np.empty(TILE, np.int32)
    k_all = len(bias)
    for t in range(start, stop):
        make_tile(points, t * TILE, dim, levels, np.float32(0), tile, scales)
        s0, s1 = load(scales, 0), load(scales, 16)
        best0 = best1 = splat(np.float32(-3e38))
        arg0 = arg1 = splat_int(np.int32(0))
        zero = splat_int(np.int32(0))
        for k in range(0, k_all, 4):
            k1, k2, k3 = min(k + 1, k_all - 1), min(k + 2, k_all - 1), min(k + 3, k_all - 1)
            a0, a1, b0, b1, c0, c1, d0, d1 = four_products(centroids, k, k_all - 1, width, tile, zero, zero)
            best0, arg0 = _better(a0, s0, bias[k], k, best0, arg0)
            best1, arg1 = _better(a1, s1, bias[k], k, best1, arg1)
            best0, arg0 = _better(b0, s0, bias[k1], k1, best0, arg0)
            best1, arg1 = _better(b1, s1, bias[k1], k1, best1, arg1)
            best0, arg0 = _better(c0, s0, bias[k2], k2, best0, arg0)
            best1, arg1 = _better(c1, s1, bias[k2], k2, best1, arg1)
            best0, arg0 = _better(d0, s0, bias[k3], k3, best0, arg0)
            best1, arg1 = _better(d1, s1, bias[k3], k3, best1, arg1)
        store(found, 0, arg0)
        store(found, 16, arg1)
        for r in range(min(TILE, len(points) - t * TILE)):
            codes[t * TILE + r] = found[r]


@jit
def _better(product, scale, bias, k, best, arg):
    # The 128 * sum of the row that the unsigned bytes add is the same for every centroid.
    value = simd.fma(simd.to_float(product), scale, splat(-bias))
    return simd.larger(value, best), simd.where_larger(value, best, splat_int(np.int32(k)), arg)


@jit
def extremes(products, tiles, n_centroids, rows):
    """Smallest and largest of products [tiles, K, 32] int32 over the first ``rows`` rows."""
    low, high = np.int32(2**31 - 1), LOWEST
    lows, highs = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    for t in range(tiles):
        low0 = low1 = splat_int(np.int32(2**31 - 1))
        high0 = high1 = splat_int(LOWEST)
        for k in range(t * n_centroids, (t + 1) * n_centroids):
            x, y = load_int(products, k * TILE), load_int(products, k * TILE + 16)
            low0, low1 = simd.smaller_int(low0, x), simd.smaller_int(low1, y)
            high0, high1 = simd.larger_int(high0, x), simd.larger_int(high1, y)
        store(lows, 0, low0)
        store(lows, 16, low1)
        store(highs, 0, high0)
        store(highs, 16, high1)
        for r in range(min(TILE, rows - t * TILE)):
            low, high = min(low, lows[r]), max(high, highs[r])
    return low, high


@jit
def make_table(products, tiles, n_centroids, rows, low, scale, table):
    """table = uint8 of (products - low) * scale, for rows that do not exist 0."""
    scales = np.empty(TILE, np.float32)
    base = splat_int(np.int32(low))
    for t in range(tiles):
        for r in range(TILE):
            scales[r] = scale if t * TILE + r < rows else np.float32(0)
        s0, s1 = load(scales, 0), load(scales, 16)
        for k in range(t * n_centroids, (t + 1) * n_centroids):
            at = k * TILE
            x, y = simd.sub_int(load_int(products, at), base), simd.sub_int(load_int(products, at + 16), base)
            simd.store_bytes(table, at, simd.mul(simd.to_float(x), s0))
            simd.store_bytes(table, at + 16, simd.mul(simd.to_float(y), s1))


@jit
def probe(products, tiles, n_centroids, rows, n_probe, floor, opened):
    """opened[k] = 1 for the n_probe largest products of every row that reach ``floor``; ties at the lower k.

    Blocks of 64 centroids are passed over when their largest products cannot enter any row's best.
    """
    block = 64
    kth = np.empty(TILE, np.int32)
    tops = np.empty((TILE, n_probe), np.int32)
    cells = np.empty((TILE, n_probe), np.int32)
    peak = np.empty(TILE, np.int32)
    for t in range(tiles):
        here = min(TILE, rows - t * TILE)
        kth[:] = 2**31 - 1  # rows that do not exist never open anything
        for r in range(here):
            kth[r] = max(LOWEST, floor - 1)
        tops[:] = LOWEST
        cells[:] = -1
        for start in range(0, n_centroids, block):
            stop = min(start + block, n_centroids)
            high0 = high1 = splat_int(LOWEST)
            for k in range(t * n_centroids + start, t * n_centroids + stop):
                high0 = simd.larger_int(high0, load_int(products, k * TILE))
                high1 = simd.larger_int(high1, load_int(products, k * TILE + 16))
            if not (simd.any_larger(high0, load_int(kth, 0)) or simd.any_larger(high1, load_int(kth, 16))):
                continue
            store(peak, 0, high0)
            store(peak, 16, high1)
            for r in range(here):
                if peak[r] > kth[r]:
                    for k in range(start, stop):
                        value = products[(t * n_centroids + k) * TILE + r]
                        if value > kth[r]:
                            at = n_probe - 1
                            while at > 0 and tops[r, at - 1] < value:
                                tops[r, at], cells[r, at] = tops[r, at - 1], cells[r, at - 1]
                                at -= 1
                            tops[r, at], cells[r, at] = value, k
                            kth[r] = max(kth[r], tops[r, n_probe - 1])
        for r in range(here):
            for i in range(n_probe):
                if cells[r, i] >= 0:
                    opened[cells[r, i]] = 1


@jit
def collect(opened, positions, starts, wanted, stamps, stamp, out):
    """Documents in the opened lists, each once -> their number; ``out`` [N] int32 gets them.

    positions, starts [K + 1]: inverted lists. wanted [N] uint8, or empty for every document. stamps [N] uint8 holds
    no ``stamp`` yet.
    """
    n = 0
    for k in range(len(opened)):
        if opened[k]:
            for i in range(starts[k], starts[k + 1]):
                p = positions[i]
                if 0 <= p < len(stamps) and stamps[p] != stamp:  # a damaged file must not write elsewhere
                    stamps[p] = stamp
                    if len(wanted) == 0 or wanted[p]:
                        out[n] = p
                        n += 1
    return n


@jit
def within(code, n_centroids):
    """A damaged code must not read beside the table."""
    return min(max(np.intp(code), np.intp(0)), np.intp(n_centroids - 1))


@jit
def approximate(codes, offsets, positions, table, tiles, n_centroids, scores):
    """scores[i] = sum over rows of the largest table entry among the centroids of document positions[i]."""
    scores[:] = 0
    for t in range(tiles):
        base = np.intp(t) * n_centroids * TILE
        for i in range(len(positions)):
            first, last = offsets[positions[i]], offsets[positions[i] + 1]
            if last > first:
                best = simd.load_bytes(table, base + within(codes[first], n_centroids) * TILE)
                for r in range(first + 1, last):
                    entry = simd.load_bytes(table, base + within(codes[r], n_centroids) * TILE)
                    best = simd.larger_bytes(best, entry)
                scores[i] += simd.total_bytes(best)


@jit
def compress(points, centroids, codes, cutoffs, nbits, start, stop, out):
    """Packed residuals of points start .. stop - 1 [n, D] float32 -> out [n, bytes] uint8 (see ``index.codec``)."""
    dim = points.shape[1]
    for i in range(start, stop):
        out[i, :] = 0
        for d in range(dim):
            value = points[i, d] - centroids[codes[i], d]
            bucket = 0
            if nbits <= 4:
                for c in cutoffs:
                    bucket += value > c
            else:
                bucket = np.searchsorted(cutoffs, value)
            for bit in range(nbits):
                place = d * nbits + bit
                out[i, place // 8] |= np.uint8(((bucket >> bit) & 1) << (7 - place % 8))


@jit
def count_pairs(codes, lengths, first, last_seen, counts):
    """counts[k] += documents with a vector at centroid k; documents are numbered from ``first``."""
    r = 0
    for i in range(len(lengths)):
        for _ in range(lengths[i]):
            k = codes[r]
            if last_seen[k] != first + i:
                last_seen[k] = first + i
                counts[k] += 1
            r += 1


@jit
def place_pairs(codes, lengths, first, last_seen, low, high, cursor, out):
    """The same walk, writing the document numbers of centroids low .. high - 1 at their cursors."""
    r = 0
    for i in range(len(lengths)):
        for _ in range(lengths[i]):
            k = np.int64(codes[r])
            if low <= k < high and last_seen[k] != first + i:
                last_seen[k] = first + i
                out[cursor[k]] = first + i
                cursor[k] += 1
            r += 1
