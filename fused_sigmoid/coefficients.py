"""Constants of 1 / (1 + exp(|x|)).

Written by csrc/numerics/generate_coefficients.py; change that and run it again.
"""

# Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
FLOAT32_LIMIT = float.fromhex("0x1.ap+6")
# 1 / ln 2.
FLOAT32_LOG2_E = float.fromhex("0x1.715476p+0")
# Adding it rounds to an integer; the low bits are then an exponent field.
FLOAT32_ROUND_SHIFT = float.fromhex("0x1.8000c2p+23")
# ln 2.
FLOAT32_LN2_HIGH = float.fromhex("0x1.62e43p-1")
# What ln2_high lacks of ln 2.
FLOAT32_LN2_LOW = float.fromhex("-0x1.05c61p-29")
# What stands above in 1 / (1 + exp(|x|)), scaled.
FLOAT32_NUMERATOR = float.fromhex("0x1.a98p-31")
# What stands below beside the exponential, scaled.
FLOAT32_SUMMAND = float.fromhex("0x1.a98p-31")
# |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-27.916 on |r| <= ln(2)/2, proven.
FLOAT32_EXP = (
    float.fromhex("0x1.a98p-1"),
    float.fromhex("0x1.a98p-1"),
    float.fromhex("0x1.a97ffcp-2"),
    float.fromhex("0x1.1baa08p-3"),
    float.fromhex("0x1.1badaap-5"),
    float.fromhex("0x1.c7cb2p-8"),
    float.fromhex("0x1.2cf5bap-10"),
)

# Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
FLOAT64_LIMIT = float.fromhex("0x1.75p+9")
# 1 / ln 2.
FLOAT64_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
# Adding it rounds to an integer; the low bits are then an exponent field.
FLOAT64_ROUND_SHIFT = float.fromhex("0x1.80000000003c3p+52")
# ln 2.
FLOAT64_LN2_HIGH = float.fromhex("0x1.62e42fefa39efp-1")
# What ln2_high lacks of ln 2.
FLOAT64_LN2_LOW = float.fromhex("0x1.abc9e3b39803fp-56")
# What stands above in 1 / (1 + exp(|x|)), scaled.
FLOAT64_NUMERATOR = float.fromhex("0x1.a98p-61")
# What stands below beside the exponential, scaled.
FLOAT64_SUMMAND = float.fromhex("0x1.a98p-61")
# |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-57.494 on |r| <= ln(2)/2, proven.
FLOAT64_EXP = (
    float.fromhex("0x1.a98p-1"),
    float.fromhex("0x1.a98p-1"),
    float.fromhex("0x1.a98000000001p-2"),
    float.fromhex("0x1.1baaaaaaaaa5fp-3"),
    float.fromhex("0x1.1baaaaaaa6adbp-5"),
    float.fromhex("0x1.c5ddddde038ccp-8"),
    float.fromhex("0x1.2e93e95292e4dp-10"),
    float.fromhex("0x1.59cd9c77f0585p-13"),
    float.fromhex("0x1.59cd46ce88599p-16"),
    float.fromhex("0x1.33623250bff25p-19"),
    float.fromhex("0x1.ed1c39835bff3p-23"),
    float.fromhex("0x1.64ef7f968459bp-26"),
)

# Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
FLOAT16_LIMIT = float.fromhex("0x1.4p+5")
# 1 / ln 2.
FLOAT16_LOG2_E = float.fromhex("0x1.715476p+0")
# Adding it rounds to an integer; the low bits are then an exponent field.
FLOAT16_ROUND_SHIFT = float.fromhex("0x1.8000fep+23")
# ln 2.
FLOAT16_LN2_HIGH = float.fromhex("0x1.62e432p-1")
# What ln2_high lacks of ln 2.
FLOAT16_LN2_LOW = float.fromhex("0x0p+0")
# What stands above in 1 / (1 + exp(|x|)), scaled.
FLOAT16_NUMERATOR = float.fromhex("0x1.00000ap+0")
# What stands below beside the exponential, scaled.
FLOAT16_SUMMAND = float.fromhex("0x1.fffffep-1")
# |p(r) / exp(r) - 1| <= 2**-19.477 on |r| <= ln(2)/2, proven.
FLOAT16_EXP = (
    float.fromhex("0x1.000012p+0"),
    float.fromhex("0x1.00001p+0"),
    float.fromhex("0x1.fffep-2"),
    float.fromhex("0x1.555ba6p-3"),
    float.fromhex("0x1.575966p-5"),
    float.fromhex("0x1.0fd06p-7"),
)

# Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
BFLOAT16_LIMIT = float.fromhex("0x1.ap+6")
# 1 / ln 2.
BFLOAT16_LOG2_E = float.fromhex("0x1.715476p+0")
# Adding it rounds to an integer; the low bits are then an exponent field.
BFLOAT16_ROUND_SHIFT = float.fromhex("0x1.8000c2p+23")
# ln 2.
BFLOAT16_LN2_HIGH = float.fromhex("0x1.62e43p-1")
# What ln2_high lacks of ln 2.
BFLOAT16_LN2_LOW = float.fromhex("0x0p+0")
# What stands above in 1 / (1 + exp(|x|)), scaled.
BFLOAT16_NUMERATOR = float.fromhex("0x1p-30")
# What stands below beside the exponential, scaled.
BFLOAT16_SUMMAND = float.fromhex("0x1p-30")
# |p(r) / exp(r) - 1| <= 2**-17.162 on |r| <= ln(2)/2, proven.
BFLOAT16_EXP = (
    float.fromhex("0x1.ffffe8p-1"),
    float.fromhex("0x1.fff9ccp-1"),
    float.fromhex("0x1.0004e4p-1"),
    float.fromhex("0x1.57e0bcp-3"),
    float.fromhex("0x1.53a0d8p-5"),
)
