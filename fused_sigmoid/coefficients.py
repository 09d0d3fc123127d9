"""Constants of exp(-|x|).

Written by csrc/numerics/generate_coefficients.py; change that and run it again.
"""

# Arguments are clamped to it: its exponential rounds to zero.
FLOAT32_LIMIT = float.fromhex("0x1.b8p+6")
# 1 / ln 2.
FLOAT32_LOG2_E = float.fromhex("0x1.715476p+0")
# ln 2 rounded.
FLOAT32_LN2_HIGH = float.fromhex("0x1.62e43p-1")
# ln 2 - ln2_high.
FLOAT32_LN2_LOW = float.fromhex("-0x1.05c61p-29")
# Adding it rounds to an integer, kept in the low bits.
FLOAT32_ROUND_SHIFT = float.fromhex("0x1.8p+23")
# |p(r) / exp(r) - 1| <= 2**-27.961 on |r| <= ln(2)/2, proven.
FLOAT32_EXP = (
    float.fromhex("0x1p+0"),
    float.fromhex("0x1p+0"),
    float.fromhex("0x1.fffffcp-2"),
    float.fromhex("0x1.555492p-3"),
    float.fromhex("0x1.5558f2p-5"),
    float.fromhex("0x1.1239d6p-7"),
    float.fromhex("0x1.6a246p-10"),
)

# Arguments are clamped to it: its exponential rounds to zero.
FLOAT64_LIMIT = float.fromhex("0x1.77p+9")
# 1 / ln 2.
FLOAT64_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
# ln 2 rounded.
FLOAT64_LN2_HIGH = float.fromhex("0x1.62e42fefa39efp-1")
# ln 2 - ln2_high.
FLOAT64_LN2_LOW = float.fromhex("0x1.abc9e3b39803fp-56")
# Adding it rounds to an integer, kept in the low bits.
FLOAT64_ROUND_SHIFT = float.fromhex("0x1.8p+52")
# |p(r) / exp(r) - 1| <= 2**-56.296 on |r| <= ln(2)/2, proven.
FLOAT64_EXP = (
    float.fromhex("0x1p+0"),
    float.fromhex("0x1p+0"),
    float.fromhex("0x1.000000000000ap-1"),
    float.fromhex("0x1.55555555554fap-3"),
    float.fromhex("0x1.555555555088cp-5"),
    float.fromhex("0x1.1111111127bd1p-7"),
    float.fromhex("0x1.6c16c1842660ap-10"),
    float.fromhex("0x1.a01a012a57a75p-13"),
    float.fromhex("0x1.a0199a16e6d9ep-16"),
    float.fromhex("0x1.71df2561775cbp-19"),
    float.fromhex("0x1.28ad68b1b396dp-22"),
    float.fromhex("0x1.ad7f3efa4e08ap-26"),
)
