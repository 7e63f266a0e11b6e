"""Vector registers for numba: 16 floats, 16 integers or 32 bytes that stay in registers through a loop.

numba leaves vectorisation to LLVM's guesses, which miss the register blocking that a matrix product needs. These few
operations say it directly, in LLVM's portable vector types; only ``dot4`` and the lookups name x86 instructions, and
``DOT4`` and ``LOOKUP`` say whether this CPU has them (else there is another way).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# numba compiles for another CPU than this one when these say so; then no instruction may be taken for granted.
_OTHER = os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES")
_FEATURES = {} if _OTHER else llvmlite.binding.get_host_cpu_features()
DOT4 = bool(_FEATURES.get("avx512vnni"))
LOOKUP = bool(_FEATURES.get("avx512bw"))
_I32, _ELEMENT = ir.IntType(32), {"f": ir.FloatType(), "i": ir.IntType(32), "b": ir.IntType(8)}


def forget_stale_code(file: str) -> None:
    """numba's cache looks at the file of a function only; what was compiled from others of this room goes with them."""
    here = Path(file)
    seen = hashlib.sha256(b"".join((here.parent / n).read_bytes() for n in ("simd.py", "kernels.py", "scoring.py")))
    mark = here.parent / "__pycache__" / f"{here.stem}.sources"
    with contextlib.suppress(OSError):  # a folder that cannot be written holds no cache either
        if not mark.is_file() or mark.read_text() != seen.hexdigest():
            for code in mark.parent.glob(f"{here.stem}.*.nb[ic]"):
                code.unlink(missing_ok=True)
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(seen.hexdigest())


class _Vector(types.Type):
    def __init__(self, kind: str, lanes: int) -> None:
        self.ll = ir.VectorType(_ELEMENT[kind], lanes)
        super().__init__(name=f"vector({kind}x{lanes})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, type_) -> None:
        super().__init__(manager, type_, type_.ll)


F, INT, BYTES, OCTETS = _Vector("f", 16), _Vector("i", 16), _Vector("b", 32), _Vector("b", 16)


def _address(context, builder, array_type, array, index, ll):
    """Pointer to element ``index`` of a flat array, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ll.as_pointer())


def _loader(result, stored=None, convert=None):
    stored = stored or result.ll

    @intrinsic
    def load(typing, array, index):
        def codegen(context, builder, signature, args):
            value = builder.load(_address(context, builder, signature.args[0], *args, stored), align=1)
            return convert(builder, value) if convert else value

        return result(array, types.intp), codegen

    return load


load = _loader(F)
"""load(float32[:], i): elements i .. i + 15."""
load_int = _loader(INT)
load_bytes = _loader(BYTES)
load_bytes16 = _loader(OCTETS)
load_half = _loader(F, ir.VectorType(ir.HalfType(), 16), lambda b, v: b.fpext(v, F.ll))
"""load_half(uint16[:], i): 16 float16 numbers, given as their bits."""
load_octets = _loader(INT, ir.VectorType(_ELEMENT["b"], 16), lambda b, v: b.zext(v, INT.ll))
"""load_octets(uint8[:], i): 16 bytes as integers."""


@intrinsic
def half(typing, array, index):
    """One float16 of an array of uint16 bits."""

    def codegen(context, builder, signature, args):
        return builder.fpext(
            builder.load(_address(context, builder, signature.args[0], *args, ir.HalfType()), align=2), ir.FloatType()
        )

    return types.float32(array, types.intp), codegen


@intrinsic
def store(typing, array, index, value):
    def codegen(context, builder, signature, args):
        pointer = _address(context, builder, signature.args[0], args[0], args[1], signature.args[2].ll)
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


def _splat(builder, value, ll):
    one = builder.insert_element(ir.Constant(ll, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, ll.count), [0] * ll.count))


def _splatter(result, scalar):
    @intrinsic
    def splat(typing, value):
        return result(scalar), lambda context, builder, signature, args: _splat(builder, args[0], result.ll)

    return splat


splat = _splatter(F, types.float32)
splat_int = _splatter(INT, types.int32)


@intrinsic
def splat4(typing, array, index):
    """Four bytes of an array, read as one integer, in all 16 lanes."""

    def codegen(context, builder, signature, args):
        word = builder.load(_address(context, builder, signature.args[0], *args, _I32), align=1)
        return _splat(builder, word, INT.ll)

    return INT(array, types.intp), codegen


def _binary(vector, emit):
    @intrinsic
    def operation(typing, a, b):
        return vector(vector, vector), lambda context, builder, signature, args: emit(builder, *args)

    return operation


sub = _binary(F, lambda b, x, y: b.fsub(x, y))
add = _binary(F, lambda b, x, y: b.fadd(x, y))
mul = _binary(F, lambda b, x, y: b.fmul(x, y))
larger = _binary(F, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
sub_int = _binary(INT, lambda b, x, y: b.sub(x, y))
xor_int = _binary(INT, lambda b, x, y: b.xor(x, y))
and_int = _binary(INT, lambda b, x, y: b.and_(x, y))
shift_right = _binary(INT, lambda b, x, y: b.lshr(x, y))
larger_int = _binary(INT, lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y))
smaller_int = _binary(INT, lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y))
add_int = _binary(INT, lambda b, x, y: b.add(x, y))
larger_bytes = _binary(BYTES, lambda b, x, y: b.select(b.icmp_unsigned(">", x, y), x, y))


and_bytes = _binary(OCTETS, lambda b, x, y: b.and_(x, y))
add_bytes = _binary(OCTETS, lambda b, x, y: b.add(x, y))
shift_bytes = _binary(OCTETS, lambda b, x, y: b.lshr(x, y))
splat_byte = _splatter(OCTETS, types.uint8)


def _call(builder, name, result, *args):
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""
    return F(F, F, F), lambda context, builder, signature, args: _call(builder, "llvm.fma.v16f32", F.ll, *args)


@intrinsic
def dot4(typing, total, unsigned, signed):
    """total + the sum of four products of unsigned and signed bytes, in each of 16 lanes (x86 VNNI where there is)."""

    def codegen(context, builder, signature, args):
        if DOT4:
            return _call(builder, "llvm.x86.avx512.vpdpbusd.512", INT.ll, *args)
        octets, wide = ir.VectorType(_ELEMENT["b"], 64), ir.VectorType(_I32, 64)
        a = builder.zext(builder.bitcast(args[1], octets), wide)
        b = builder.sext(builder.bitcast(args[2], octets), wide)
        products, result = builder.mul(a, b), args[0]
        for i in range(4):
            every_fourth = ir.Constant(ir.VectorType(_I32, 16), list(range(i, 64, 4)))
            result = builder.add(result, builder.shuffle_vector(products, products, every_fourth))
        return result

    return INT(INT, INT, INT), codegen


@intrinsic
def lookup(typing, table, index):
    """table[index & 15] in each of 16 lanes (x86 AVX-512)."""

    def codegen(context, builder, signature, args):
        # Without LOOKUP nothing comes here, but it is compiled all the same.
        return _call(builder, "llvm.x86.avx512.permvar.sf.512", F.ll, *args) if LOOKUP else args[0]

    return F(F, INT), codegen


@intrinsic
def lookup_octets(typing, table, index):
    """table[index] in each of 16 lanes, of bytes, index below 16 (x86 SSSE3)."""

    def codegen(context, builder, signature, args):
        return _call(builder, "llvm.x86.ssse3.pshuf.b.128", OCTETS.ll, *args) if LOOKUP else args[0]

    return OCTETS(OCTETS, OCTETS), codegen


def _as_bytes(emit):
    """An operation on registers of integers that sees the 64 bytes in them."""
    octets = ir.VectorType(_ELEMENT["b"], 64)
    return _binary(INT, lambda b, x, y: b.bitcast(emit(b, b.bitcast(x, octets), b.bitcast(y, octets)), INT.ll))


add_each_byte = _as_bytes(lambda b, x, y: b.add(x, y))
lookup_each_byte = _as_bytes(lambda b, x, y: _call(b, "llvm.x86.avx512.pshuf.b.512", x.type, x, y) if LOOKUP else x)
"""table[index] in each of 64 bytes, index below 16; a table is the same 16 bytes four times (x86 AVX-512)."""


@intrinsic
def repeat16(typing, array, index):
    """16 bytes of an array, four times."""

    def codegen(context, builder, signature, args):
        four = builder.load(_address(context, builder, signature.args[0], *args, ir.VectorType(_I32, 4)), align=1)
        return builder.shuffle_vector(four, four, ir.Constant(ir.VectorType(_I32, 16), [i % 4 for i in range(16)]))

    return INT(array, types.intp), codegen


@intrinsic
def to_float(typing, value):
    return F(INT), lambda context, builder, signature, args: builder.sitofp(args[0], F.ll)


@intrinsic
def store_bytes(typing, array, index, value):
    """16 floats in [0, 256) as bytes, cut off."""

    def codegen(context, builder, signature, args):
        small = ir.VectorType(_ELEMENT["b"], 16)
        pointer = _address(context, builder, signature.args[0], args[0], args[1], small)
        builder.store(builder.trunc(builder.fptosi(args[2], INT.ll), small), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, F), codegen


@intrinsic
def where_larger(typing, a, b, x, y):
    """x where a > b, else y, in each of 16 lanes."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return INT(F, F, INT, INT), codegen


@intrinsic
def any_larger(typing, a, b):
    """Whether a > b in any lane."""

    def codegen(context, builder, signature, args):
        mask = builder.icmp_signed(">", *args)
        bits = builder.bitcast(mask, ir.IntType(16))
        return builder.icmp_unsigned("!=", bits, ir.IntType(16)(0))

    return types.boolean(INT, INT), codegen


@intrinsic
def lanes_at_least(typing, a, b):
    """Bits of the lanes where a >= b."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(builder.fcmp_ordered(">=", *args), ir.IntType(16))
        return builder.zext(bits, _I32)

    return types.uint32(F, F), codegen


@intrinsic
def lowest_bit(typing, bits):
    """Number of the lowest set bit of a non-zero uint32."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.uint32(types.uint32), codegen


@intrinsic
def total(typing, value):
    """Sum of 16 floats, pairwise."""

    def codegen(context, builder, signature, args):
        name = "llvm.vector.reduce.fadd.v16f32"
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), F.ll])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [ir.Constant(ir.FloatType(), 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(F), codegen


@intrinsic
def total_int(typing, value):
    """Sum of 16 integers."""

    def codegen(context, builder, signature, args):
        return _call(builder, "llvm.vector.reduce.add.v16i32", _I32, *args)

    return types.int32(INT), codegen


@intrinsic
def total_bytes(typing, value):
    """Sum of 32 unsigned bytes."""

    def codegen(context, builder, signature, args):
        wide = builder.zext(args[0], ir.VectorType(_I32, 32))
        return _call(builder, "llvm.vector.reduce.add.v32i32", _I32, wide)

    return types.int32(BYTES), codegen
