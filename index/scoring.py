"""The loops over vectors, on CPU: MaxSim of compressed and of stored documents (see ``index.kernels``).

tiles8    a query in tiles of 32 rows of integers for ``dot4``: [tiles, groups of 4 dimensions, 32 rows, 4] int8
floats    tiles of 32 rows of numbers for ``fma``: [tiles, D, 32] float32, D a multiple of 16
coder     (unsigned integer centroids [K, width], integer weights, values per byte, bytes per vector, D)
decoder   (centroids [K, D up to 16] float32, weights, values per byte, bytes per vector, unit, D)
With 16 weights a byte's places are planes of dimensions (see ``index.cpu``); else there are weights for every byte.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from index import simd
from index.kernels import LOWEST, TILE, centroid_products, excess, four_products, jit, within
from index.simd import dot4, load, load_int, splat, splat_int, store

_pread = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uintp, types.int64))
simd.forget_stale_code(__file__)


def tiles(rows):
    """rows [R, D] float32 -> ``floats`` of all tiles, one after another; what is missing is zero."""
    count, wide = -(-len(rows) // TILE), -(-rows.shape[1] // 16) * 16
    padded = np.zeros((count * TILE, wide), np.float32)
    padded[: len(rows), : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.reshape(count, TILE, wide).transpose(0, 2, 1)).reshape(-1)


@jit
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


@jit
def score_integers(codes, residuals, offsets, positions, owners, coder, tiles8, starts, scores):
    """scores[i] = MaxSim of document positions[i] and query owners[i] in integers: (centroid + weight) . row.

    A document's vectors are rebuilt once for all queries that follow each other at it. coder: see above. tiles8, starts
    [B + 1]: the tiles of all queries, those of query b from starts[b] on.
    """
    centroids, weights, per, bytes_, dim = coder
    width = centroids.shape[1]
    flat = centroids.reshape(-1)
    vectors = np.zeros(_longest(offsets, positions) * width, np.uint8)
    scores[:] = 0
    for i in range(len(positions)):
        first, n = offsets[positions[i]], offsets[positions[i] + 1] - offsets[positions[i]]
        if n > 0:
            if i == 0 or positions[i] != positions[i - 1]:
                _rebuild(codes, residuals, first, n, flat, weights, per, bytes_, width, dim, vectors)
            for t in range(starts[owners[i]], starts[owners[i] + 1]):
                scores[i] += _best_integers(vectors, n, width, tiles8[t * width * TILE : (t + 1) * width * TILE])


@jit
def _longest(offsets, positions):
    longest = 1
    for p in positions:
        longest = max(longest, offsets[p + 1] - offsets[p])
    return longest


@jit
def score_closely(codes, residuals, offsets, positions, owners, coder, decoder, looks, no_vectors, out):
    """out[i] = MaxSim of document positions[i] and query owners[i] in float32, of whose products most are integers.

    How far an integer product is from the true one is known (a row's rounding error by Cauchy and Schwarz; six
    deviations of the rounding of a vector, times the longest row), so most vectors cannot be a row's best. Only the
    others are decompressed, once for all queries that follow each other at a document, and multiplied in float32.
    looks: (tiles8, starts [B + 1] as in ``score_integers``; rows [R, D] float32 in the decoder's order, starts [B + 1];
    steps [B] of the rows' integers, step of the vectors'; [B] longest rounding errors of a row, [B] deviations).
    """
    integers, small_weights, per, bytes_, true_dim = coder
    centroids, weights, _, _, unit, _ = decoder
    tiles8, starts, rows, row_starts, row_steps, step, row_errors, deviations = looks
    width, dim = integers.shape[1], centroids.shape[1]
    flat8, flat, flat_rows = integers.reshape(-1), centroids.reshape(-1), rows.reshape(-1)
    longest = _longest(offsets, positions)
    vectors8, products = np.zeros(longest * width, np.uint8), np.empty(longest * TILE, np.int32)
    vectors, factors = np.zeros(longest * dim, np.float32), np.ones(longest, np.float32)
    inverse, scales, slacks = (
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
    )
    ready, best = np.empty(longest, np.uint8), np.empty(TILE, np.float32)
    lanes, needed = np.empty(longest, np.uint32), np.empty(longest, np.int64)
    for i in range(len(positions)):
        first, n = offsets[positions[i]], offsets[positions[i] + 1] - offsets[positions[i]]
        if n == 0:
            out[i] = no_vectors
            continue
        if i == 0 or positions[i] != positions[i - 1]:
            _rebuild(codes, residuals, first, n, flat8, small_weights, per, bytes_, width, true_dim, vectors8)
            _inverse_lengths(vectors8, n, width, true_dim, inverse)
            ready[:n] = 0
        b = owners[i]
        row_step, row_error, deviation = row_steps[b], row_errors[b], deviations[b]
        for r in range(n):
            if unit:  # a vector's error turns it by no more than error / length
                slacks[r] = row_error + np.float32(1.02) * deviation * inverse[r] / step
                scales[r] = inverse[r] * row_step
            else:
                slacks[r] = deviation + row_error * step / inverse[r]
                scales[r] = row_step * step
        s = np.float32(0)
        for t in range(starts[b], starts[b + 1]):
            centroid_products(vectors8, width, tiles8[t * width * TILE : (t + 1) * width * TILE], 0, n, products)
            row = row_starts[b] + (t - starts[b]) * TILE
            here = min(TILE, row_starts[b + 1] - row)
            _near_best(products, scales, slacks, n, here, lanes)
            count = 0
            for r in range(n):
                if lanes[r] != 0 and ready[r] == 0:
                    ready[r], needed[count] = 1, r
                    count += 1
            _decompress(codes, residuals, first, needed[:count], flat, weights, per, bytes_, dim, true_dim, unit,
                        vectors, factors)  # fmt: skip
            best[:] = np.float32(-3e38)
            for r in range(n):
                if lanes[r] != 0:
                    _improve(vectors, r * dim, factors[r], lanes[r], flat_rows, row * dim, dim, best)
            for lane in range(here):
                s += best[lane]
        out[i] = s


@jit
def _near_best(products, scales, slacks, n, here, lanes):
    """lanes[r] = bits of the rows for which product r, scaled and in error by up to slacks[r], can be the best one."""
    high0 = high1 = splat(np.float32(-3e38))
    for r in range(n):
        scale, slack = splat(scales[r]), splat(slacks[r])
        high0 = simd.larger(high0, simd.sub(simd.mul(simd.to_float(load_int(products, r * TILE)), scale), slack))
        high1 = simd.larger(high1, simd.sub(simd.mul(simd.to_float(load_int(products, r * TILE + 16)), scale), slack))
    exists = np.uint32((np.int64(1) << here) - 1)
    for r in range(n):
        scale, slack = splat(scales[r]), splat(slacks[r])
        value0 = simd.add(simd.mul(simd.to_float(load_int(products, r * TILE)), scale), slack)
        value1 = simd.add(simd.mul(simd.to_float(load_int(products, r * TILE + 16)), scale), slack)
        bits0, bits1 = simd.lanes_at_least(value0, high0), simd.lanes_at_least(value1, high1)
        lanes[r] = (bits0 | (bits1 << np.uint32(16))) & exists


@jit
def _improve(vectors, at, factor, lanes, rows, base, dim, best):
    """best[lane] = its maximum with the product of one vector, for the lanes whose bits are set."""
    while lanes != 0:
        lane = np.int64(simd.lowest_bit(lanes))
        lanes = lanes & (lanes - np.uint32(1))
        x = y = splat(np.float32(0))
        to = base + lane * dim
        for d in range(0, dim - 16, 32):
            x = simd.fma(load(vectors, at + d), load(rows, to + d), x)
            y = simd.fma(load(vectors, at + d + 16), load(rows, to + d + 16), y)
        if dim % 32:
            x = simd.fma(load(vectors, at + dim - 16), load(rows, to + dim - 16), x)
        best[lane] = max(best[lane], simd.total(simd.add(x, y)) * factor)


@jit
def _inverse_lengths(vectors, n, width, dim, out):
    """out[r] = 1 / length of vector r, whose integers are stored plus 128."""
    ones, flip = splat_int(np.int32(16843009)), splat_int(np.int32(-2139062144))
    for r in range(n):
        s = np.int32(0)
        at = r * width
        if dim % 64 == 0:  # sums of u * v and of v, where u = v + 128
            squares = sums = splat_int(np.int32(0))
            for d in range(0, dim, 64):
                stored = load_int(vectors, at + d)
                signed = simd.xor_int(stored, flip)
                squares, sums = dot4(squares, stored, signed), dot4(sums, ones, signed)
            s = simd.total_int(squares) - np.int32(128) * simd.total_int(sums)
        else:
            for d in range(dim):
                v = np.int32(vectors[at + d]) - np.int32(128)
                s += v * v
        out[r] = np.float32(1) / np.sqrt(max(np.float32(s), np.float32(1)))


@jit
def _rebuild(codes, residuals, first, n, centroids, weights, per, bytes_, width, dim, vectors):
    """Vectors first .. first + n - 1 in bytes: unsigned centroid + signed weight."""
    k_all, bits = len(centroids) // width, 8 // per
    low, last = (1 << bits) - 1, bytes_ * (per - 1)
    table, ones, shift = simd.load_bytes16(weights, 0), simd.splat_byte(np.uint8(low)), simd.splat_byte(np.uint8(bits))
    table64, ones64, shift64 = simd.repeat16(weights, 0), splat_int(np.int32(low * 16843009)), splat_int(np.int32(bits))
    for r in range(n):
        at, base, to = (first + r) * bytes_, within(codes[first + r], k_all) * width, r * width
        if len(weights) == 16 and bytes_ % 64 == 0:
            for j in range(0, bytes_, 64):
                left = load_int(residuals, at + j)
                place = last + j
                while place >= 0:
                    weight = simd.lookup_each_byte(table64, simd.and_int(left, ones64))
                    store(vectors, to + place, simd.add_each_byte(weight, load_int(centroids, base + place)))
                    left = simd.shift_right(left, shift64)
                    place -= bytes_
        elif len(weights) == 16:  # one register of weights, one plane of dimensions per place in the byte
            for j in range(0, bytes_, 16):
                left = simd.load_bytes16(residuals, at + j)
                place = last + j
                while place >= 0:
                    weight = simd.lookup_octets(table, simd.and_bytes(left, ones))
                    store(vectors, to + place, simd.add_bytes(weight, simd.load_bytes16(centroids, base + place)))
                    left = simd.shift_bytes(left, shift)
                    place -= bytes_
        else:  # the weights of every byte, ``per`` each
            for j in range(bytes_):
                byte = np.intp(residuals[at + j]) * per
                for i in range(min(per, dim - j * per)):
                    vectors[to + j * per + i] = np.uint8(weights[byte + i] + centroids[base + j * per + i])


@jit
def _best_integers(vectors, n, width, tile):
    """Sum over 32 rows of the largest product with vectors [n, width]."""
    sum0, sum1 = excess(width, tile)
    best0 = best1 = splat_int(LOWEST)
    zero = splat_int(np.int32(0))
    for r in range(0, n, 4):
        a0, a1, b0, b1, c0, c1, d0, d1 = four_products(vectors, r, n - 1, width, tile, zero, zero)
        best0 = simd.larger_int(best0, simd.larger_int(simd.larger_int(a0, b0), simd.larger_int(c0, d0)))
        best1 = simd.larger_int(best1, simd.larger_int(simd.larger_int(a1, b1), simd.larger_int(c1, d1)))
    best = simd.add_int(simd.sub_int(best0, sum0), simd.sub_int(best1, sum1))
    return simd.total_int(best)


@jit
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


@jit
def _score(vectors, factors, n, dim, floats, tiles, starts, best, out, i):
    """out[i, b] = sum of the best products of the rows starts[b] .. starts[b + 1] - 1."""
    for t in range(tiles):
        _best_rows(vectors, factors, n, dim, floats, t, best[t * TILE : (t + 1) * TILE])
    for b in range(len(starts) - 1):
        s = np.float32(0)
        for r in range(starts[b], starts[b + 1]):
            s += best[r]
        out[i, b] = s


@jit
def score_residuals(codes, residuals, offsets, positions, decoder, floats, starts, no_vectors, out):
    """MaxSim of decompressed documents with the packed rows of all queries -> out [n, B] float32.

    decoder: see ``index.codec.Decoder``. floats: the rows in its order of dimensions. starts [B + 1]: rows per query.
    """
    centroids, weights, per, width, unit, true_dim = decoder
    dim = centroids.shape[1]
    tiles = len(floats) // (dim * TILE)
    longest = _longest(offsets, positions)
    vectors, factors = np.zeros(longest * dim, np.float32), np.ones(longest, np.float32)
    best, every = np.empty(tiles * TILE, np.float32), np.arange(longest)
    flat = centroids.reshape(-1)
    for i in range(len(positions)):
        first, last = offsets[positions[i]], offsets[positions[i] + 1]
        if last == first:
            out[i, :] = no_vectors
            continue
        rows = every[: last - first]
        _decompress(codes, residuals, first, rows, flat, weights, per, width, dim, true_dim, unit, vectors, factors)
        _score(vectors, factors, last - first, dim, floats, tiles, starts, best, out, i)


@jit
def _decompress(codes, residuals, first, rows, centroids, weights, per, width, dim, true_dim, unit, vectors, factors):
    """Vectors first + rows: centroid + bucket weights; factors bring them to length 1 when ``unit``."""
    k_all = len(centroids) // dim
    bits = 8 // per
    table, ones = load(weights, 0), splat_int(np.int32((1 << bits) - 1))
    for r in rows:
        at, base, to = (first + r) * width, within(codes[first + r], k_all) * dim, r * dim
        norm = splat(np.float32(0))
        if len(weights) == 16:  # as in ``_rebuild``
            for plane in range(per):
                shift = splat_int(np.int32(8 - (plane + 1) * bits))
                for j in range(0, width, 16):
                    index = simd.shift_right(simd.load_octets(residuals, at + j), shift)
                    value = simd.lookup(table, simd.and_int(index, ones))
                    value = simd.add(value, load(centroids, base + plane * width + j))
                    norm = simd.fma(value, value, norm)
                    store(vectors, to + plane * width + j, value)
        else:
            for j in range(width):
                byte = np.intp(residuals[at + j]) * per
                for i in range(min(per, true_dim - j * per)):
                    vectors[to + j * per + i] = weights[byte + i]
            for j in range(0, dim, 16):
                value = simd.add(load(vectors, to + j), load(centroids, base + j))
                norm = simd.fma(value, value, norm)
                store(vectors, to + j, value)
        if unit:
            factors[r] = np.float32(1) / max(np.sqrt(simd.total(norm)), np.float32(1e-12))


@jit
def score_vectors(rows, dim, offsets, positions, floats, starts, no_vectors, out):
    """As ``score_residuals`` for stored vectors: rows float32, or uint16 with the bits of float16."""
    wide = -(-dim // 16) * 16
    tiles = len(floats) // (wide * TILE)
    longest = _longest(offsets, positions)
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
