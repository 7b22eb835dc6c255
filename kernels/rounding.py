"""Rounding of float32 numbers to TF32, which the matrix instructions leave to whoever hands them their operands."""

import triton
import triton.language as tl


@triton.jit
def to_tf32(x):
    """The TF32 numbers (10 bits of mantissa) nearest to float32 `x`, as float32; ties go away from zero.

    The matrix instructions ignore an operand's low 13 bits, which truncates it: an error of up to one unit of TF32
    towards zero where rounding makes at most half a unit to either side. Integer arithmetic instead of `cvt.rna.tf32`,
    because Triton's interpreter runs no inline assembly. NaN stays NaN, and infinity infinity.
    """
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), rounded, x)
