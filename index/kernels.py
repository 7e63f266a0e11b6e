"""The hot loops of search and build on CPU, compiled by numba at first use and kept in its cache.

Everything here is single-threaded and lets other Python threads run (``nogil``); ``index.threads`` splits the work.
``index.reference`` does the same in torch, and the tests hold them together. Arrays are flat and contiguous:

tile      32 rows of integers for ``dot4``: [groups of 4 dimensions, 32 rows, 4] int8
floats    32 rows of numbers for ``fma``: [D, 32] float32, D a multiple of 16
table     one byte per centroid and row: [tiles, K, 32] uint8
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from index import simd
from index.simd import dot4, load, load_int, splat, splat4, splat_int, store

TILE = 32
_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
LOWEST = np.int32(-(2**31))
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uintp, types.int64))


def tiles(rows):
    """rows [R, D] float32 -> ``floats`` of all tiles, one after another; what is missing is zero."""
    count, wide = -(-len(rows) // TILE), -(-rows.shape[1] // 16) * 16
    padded = np.zeros((count * TILE, wide), np.float32)
    padded[: len(rows), : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.reshape(count, TILE, wide).transpose(0, 2, 1)).reshape(-1)


@_jit
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


@_jit
def centroid_products(centroids, width, tile, start, stop, out):
    """Integer products of centroids start .. stop - 1 with one tile -> out [K, 32] int32.

    centroids: [K, width] uint8, each integer plus 128. Four centroids and 32 rows at once fill eight registers.
    """
    zero = splat_int(np.int32(0))
    # The 128 that makes a centroid's bytes unsigned adds 128 times the sum of the row, which goes out first.
    minus0, minus1 = zero, zero
    all128 = splat_int(np.int32(-2139062144))  # four bytes of 128
    for g in range(width // 4):
        minus0 = dot4(minus0, all128, load_int(tile, g * 128))
        minus1 = dot4(minus1, all128, load_int(tile, g * 128 + 64))
    first0, first1 = simd.sub_int(zero, minus0), simd.sub_int(zero, minus1)
    k = start
    while k < stop:
        p0, p1 = k * width, min(k + 1, stop - 1) * width
        p2, p3 = min(k + 2, stop - 1) * width, min(k + 3, stop - 1) * width
        a0, a1, b0, b1, c0, c1, d0, d1 = first0, first1, first0, first1, first0, first1, first0, first1
        for g in range(width // 4):
            x, y = load_int(tile, g * 128), load_int(tile, g * 128 + 64)
            v = splat4(centroids, p0 + 4 * g)
            a0, a1 = dot4(a0, v, x), dot4(a1, v, y)
            v = splat4(centroids, p1 + 4 * g)
            b0, b1 = dot4(b0, v, x), dot4(b1, v, y)
            v = splat4(centroids, p2 + 4 * g)
            c0, c1 = dot4(c0, v, x), dot4(c1, v, y)
            v = splat4(centroids, p3 + 4 * g)
            d0, d1 = dot4(d0, v, x), dot4(d1, v, y)
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


@_jit
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
            p0, p1, p2, p3 = k * width, k1 * width, k2 * width, k3 * width
            a0, a1, b0, b1, c0, c1, d0, d1 = zero, zero, zero, zero, zero, zero, zero, zero
            for g in range(width // 4):
                x, y = load_int(tile, g * 128), load_int(tile, g * 128 + 64)
                v = splat4(centroids, p0 + 4 * g)
                a0, a1 = dot4(a0, v, x), dot4(a1, v, y)
                v = splat4(centroids, p1 + 4 * g)
                b0, b1 = dot4(b0, v, x), dot4(b1, v, y)
                v = splat4(centroids, p2 + 4 * g)
                c0, c1 = dot4(c0, v, x), dot4(c1, v, y)
                v = splat4(centroids, p3 + 4 * g)
                d0, d1 = dot4(d0, v, x), dot4(d1, v, y)
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


@_jit
def _better(product, scale, bias, k, best, arg):
    # The 128 * sum of the row that the unsigned bytes add is the same for every centroid.
    value = simd.fma(simd.to_float(product), scale, splat(-bias))
    return simd.larger(value, best), simd.where_larger(value, best, splat_int(np.int32(k)), arg)


@_jit
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


@_jit
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


@_jit
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


@_jit
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


@_jit
def _within(code, n_centroids):
    """A damaged code must not read beside the table."""
    return min(np.intp(code), np.intp(n_centroids - 1))


@_jit
def approximate(codes, offsets, positions, table, tiles, n_centroids, scores):
    """scores[i] = sum over rows of the largest table entry among the centroids of document positions[i]."""
    scores[:] = 0
    for t in range(tiles):
        base = np.intp(t) * n_centroids * TILE
        for i in range(len(positions)):
            first, last = offsets[positions[i]], offsets[positions[i] + 1]
            if last > first:
                best = simd.load_bytes(table, base + _within(codes[first], n_centroids) * TILE)
                for r in range(first + 1, last):
                    entry = simd.load_bytes(table, base + _within(codes[r], n_centroids) * TILE)
                    best = simd.larger_bytes(best, entry)
                scores[i] += simd.total_bytes(best)


@_jit
def fetch(descriptor, width, codes, offsets, positions, local_offsets, local_codes, residuals):
    """Copy the codes and read the residuals (``width`` bytes a row, from an open file) of documents -> all were read.

    Through a map, one byte of a cached file can make megabytes resident; this reads what is asked for.
    """
    for i in range(len(positions)):
        first, to = offsets[positions[i]], local_offsets[i]
        n = local_offsets[i + 1] - to
        for r in range(n):
            local_codes[to + r] = codes[first + r]
        done, wanted = np.int64(0), np.int64(n * width)
        while done < wanted:
            place = residuals.ctypes.data + np.uintp(to * width + done)
            got = _pread(np.int32(descriptor), place, np.uintp(wanted - done), np.int64(first * width + done))
            if got <= 0:
                return False
            done += got
    return True


@_jit
def score_integers(codes, residuals, offsets, positions, coder, tiles8, scores):
    """scores[i] = MaxSim of document positions[i] in integers: (centroid + weight) . row, all of one byte.

    coder: (unsigned centroids [K, width], unsigned weights, per, bytes), see ``index.cpu``. tiles8: the query's tiles.
    """
    centroids, weights, per, bytes_ = coder
    width = centroids.shape[1]
    flat = centroids.reshape(-1)
    tiles = len(tiles8) // (width * TILE)
    longest = 1
    for p in positions:
        longest = max(longest, offsets[p + 1] - offsets[p])
    vectors = np.zeros(longest * width, np.uint8)
    scores[:] = 0
    for i in range(len(positions)):
        first, n = offsets[positions[i]], offsets[positions[i] + 1] - offsets[positions[i]]
        if n > 0:
            _rebuild(codes, residuals, first, n, flat, weights, per, bytes_, width, vectors)
            for t in range(tiles):
                scores[i] += _best_integers(vectors, n, width, tiles8[t * width * TILE : (t + 1) * width * TILE])


@_jit
def _rebuild(codes, residuals, first, n, centroids, weights, per, bytes_, width, vectors):
    """Vectors first .. first + n - 1 in bytes: unsigned centroid + signed weight."""
    k_all = len(centroids) // width
    table, ones = simd.load_bytes16(weights, 0), simd.splat_byte(np.uint8((1 << (8 // per)) - 1))
    for r in range(n):
        at, base, to = (first + r) * bytes_, _within(codes[first + r], k_all) * width, r * width
        if len(weights) == 16:  # one register of weights, one plane of dimensions per place in the byte
            for plane in range(per):
                shift = simd.splat_byte(np.uint8(8 - (plane + 1) * (8 // per)))
                for j in range(0, bytes_, 16):
                    index = simd.shift_bytes(simd.load_bytes16(residuals, at + j), shift)
                    weight = simd.lookup_octets(table, simd.and_bytes(index, ones))
                    place = plane * bytes_ + j
                    store(vectors, to + place, simd.add_bytes(weight, simd.load_bytes16(centroids, base + place)))
        else:  # the weights of every byte, ``per`` each
            for j in range(bytes_):
                byte = np.intp(residuals[at + j]) * per
                for i in range(min(per, width - j * per)):
                    vectors[to + j * per + i] = np.uint8(weights[byte + i] + centroids[base + j * per + i])


@_jit
def _best_integers(vectors, n, width, tile):
    """Sum over 32 rows of the largest product with vectors [n, width]."""
    minus0 = minus1 = splat_int(np.int32(0))
    all128 = splat_int(np.int32(-2139062144))
    for g in range(width // 4):
        minus0 = dot4(minus0, all128, load_int(tile, g * 128))
        minus1 = dot4(minus1, all128, load_int(tile, g * 128 + 64))
    best0 = best1 = splat_int(LOWEST)
    zero = splat_int(np.int32(0))
    for r in range(0, n, 4):
        p0, p1 = r * width, min(r + 1, n - 1) * width
        p2, p3 = min(r + 2, n - 1) * width, min(r + 3, n - 1) * width
        a0, a1, b0, b1, c0, c1, d0, d1 = zero, zero, zero, zero, zero, zero, zero, zero
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
        best0 = simd.larger_int(best0, simd.larger_int(simd.larger_int(a0, b0), simd.larger_int(c0, d0)))
        best1 = simd.larger_int(best1, simd.larger_int(simd.larger_int(a1, b1), simd.larger_int(c1, d1)))
    best = simd.add_int(simd.sub_int(best0, minus0), simd.sub_int(best1, minus1))
    return simd.total_int(best)


@_jit
def _best_rows(vectors, factors, n, dim, floats, t, best):
    """best[0 .. 31] = per row of tile t the largest product with vectors [n, dim] times factors [n]; four at a time."""
    best0 = best1 = splat(np.float32(-3e38))
    base = t * dim * TILE
    for r in range(0, n, 4):
        r1, r2, r3 = min(r + 1, n - 1), min(r + 2, n - 1), min(r + 3, n - 1)
        p0, p1, p2, p3 = r * dim, r1 * dim, r2 * dim, r3 * dim
        zero = splat(np.float32(0))
        a0, a1, b0, b1, c0, c1, d0, d1 = zero, zero, zero, zero, zero, zero, zero, zero
        for d in range(dim):
            x, y = load(floats, base + d * TILE), load(floats, base + d * TILE + 16)
            v = splat(vectors[p0 + d])
            a0, a1 = simd.fma(v, x, a0), simd.fma(v, y, a1)
            v = splat(vectors[p1 + d])
            b0, b1 = simd.fma(v, x, b0), simd.fma(v, y, b1)
            v = splat(vectors[p2 + d])
            c0, c1 = simd.fma(v, x, c0), simd.fma(v, y, c1)
            v = splat(vectors[p3 + d])
            d0, d1 = simd.fma(v, x, d0), simd.fma(v, y, d1)
        f0, f1, f2, f3 = splat(factors[r]), splat(factors[r1]), splat(factors[r2]), splat(factors[r3])
        a0, b0, c0, d0 = simd.mul(a0, f0), simd.mul(b0, f1), simd.mul(c0, f2), simd.mul(d0, f3)
        a1, b1, c1, d1 = simd.mul(a1, f0), simd.mul(b1, f1), simd.mul(c1, f2), simd.mul(d1, f3)
        best0 = simd.larger(best0, simd.larger(simd.larger(a0, b0), simd.larger(c0, d0)))
        best1 = simd.larger(best1, simd.larger(simd.larger(a1, b1), simd.larger(c1, d1)))
    store(best, 0, best0)
    store(best, 16, best1)


@_jit
def _score(vectors, factors, n, dim, floats, tiles, starts, best, out, i):
    """out[i, b] = sum of the best products of the rows starts[b] .. starts[b + 1] - 1."""
    for t in range(tiles):
        _best_rows(vectors, factors, n, dim, floats, t, best[t * TILE : (t + 1) * TILE])
    for b in range(len(starts) - 1):
        s = np.float32(0)
        for r in range(starts[b], starts[b + 1]):
            s += best[r]
        out[i, b] = s


@_jit
def score_residuals(codes, residuals, offsets, positions, decoder, floats, starts, no_vectors, out):
    """MaxSim of decompressed documents with the packed rows of all queries -> out [n, B] float32.

    decoder: see ``index.codec.Decoder``. floats: the rows in its order of dimensions. starts [B + 1]: rows per query.
    """
    centroids, weights, per, width, unit = decoder
    dim = centroids.shape[1]
    tiles = len(floats) // (dim * TILE)
    longest = 1
    for p in positions:
        longest = max(longest, offsets[p + 1] - offsets[p])
    vectors, factors = np.zeros(longest * dim, np.float32), np.ones(longest, np.float32)
    best = np.empty(tiles * TILE, np.float32)
    flat = centroids.reshape(-1)
    for i in range(len(positions)):
        first, last = offsets[positions[i]], offsets[positions[i] + 1]
        if last == first:
            out[i, :] = no_vectors
            continue
        _decompress(codes, residuals, first, last - first, flat, weights, per, width, dim, unit, vectors, factors)
        _score(vectors, factors, last - first, dim, floats, tiles, starts, best, out, i)


@_jit
def _decompress(codes, residuals, first, n, centroids, weights, per, width, dim, unit, vectors, factors):
    """Vectors first .. first + n - 1: centroid + bucket weights; factors bring them to length 1 when ``unit``."""
    k_all = len(centroids) // dim
    table, ones = load(weights, 0), splat_int(np.int32((1 << (8 // per)) - 1))
    for r in range(n):
        at, base, to = (first + r) * width, _within(codes[first + r], k_all) * dim, r * dim
        norm = splat(np.float32(0))
        if len(weights) == 16:  # as in ``_rebuild``
            for plane in range(per):
                shift = splat_int(np.int32(8 - (plane + 1) * (8 // per)))
                for j in range(0, width, 16):
                    index = simd.shift_right(simd.load_octets(residuals, at + j), shift)
                    value = simd.lookup(table, simd.and_int(index, ones))
                    value = simd.add(value, load(centroids, base + plane * width + j))
                    norm = simd.fma(value, value, norm)
                    store(vectors, to + plane * width + j, value)
        else:
            for j in range(width):
                byte = np.intp(residuals[at + j]) * per
                for i in range(min(per, dim - j * per)):
                    vectors[to + j * per + i] = weights[byte + i]
            for j in range(0, dim, 16):
                value = simd.add(load(vectors, to + j), load(centroids, base + j))
                norm = simd.fma(value, value, norm)
                store(vectors, to + j, value)
        if unit:
            factors[r] = np.float32(1) / max(np.sqrt(simd.total(norm)), np.float32(1e-12))


@_jit
def score_vectors(rows, dim, offsets, positions, floats, starts, no_vectors, out):
    """As ``score_residuals`` for stored vectors: rows float32, or uint16 with the bits of float16."""
    wide = -(-dim // 16) * 16
    tiles = len(floats) // (wide * TILE)
    longest = 1
    for p in positions:
        longest = max(longest, offsets[p + 1] - offsets[p])
    vectors, factors = np.zeros(longest * wide, np.float32), np.ones(longest, np.float32)
    best = np.empty(tiles * TILE, np.float32)
    for i in range(len(positions)):
        first, last = offsets[positions[i]], offsets[positions[i] + 1]
        if last == first:
            out[i, :] = no_vectors
            continue
        for r in range(first, last):
            widen(rows, r * dim, dim, vectors, (r - first) * wide)
        _score(vectors, factors, last - first, wide, floats, tiles, starts, best, out, i)


def widen(rows, at, dim, vectors, to):
    """One stored row as float32."""


@numba.extending.overload(widen)
def _widen(rows, at, dim, vectors, to):
    if rows.dtype == types.uint16:

        def halves(rows, at, dim, vectors, to):
            whole = dim // 16 * 16
            for j in range(0, whole, 16):
                store(vectors, to + j, simd.load_half(rows, at + j))
            for j in range(whole, dim):
                vectors[to + j] = simd.half(rows, at + j)

        return halves

    def singles(rows, at, dim, vectors, to):
        for j in range(dim):
            vectors[to + j] = rows[at + j]

    return singles


@_jit
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


@_jit
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


@_jit
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
