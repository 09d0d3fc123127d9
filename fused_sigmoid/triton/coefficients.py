"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's coefficients.

Written by csrc/numerics/generate_coefficients.py; change that and run it again.
"""

SCALARS = ("limit", "log2_e", "round_shift", "ln2_high", "ln2_low", "numerator", "summand")

_NUMBERS = {
    # |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-27.916 on |r| <= ln(2)/2, proven.
    "float32": """
        0x1.ap+6 0x1.715476p+0 0x1.8000c2p+23 0x1.62e43p-1 -0x1.05c61p-29 0x1.a98p-31 0x1.a98p-31
        0x1.a98p-1 0x1.a98p-1 0x1.a97ffcp-2 0x1.1baa08p-3 0x1.1badaap-5 0x1.c7cb2p-8 0x1.2cf5bap-10
    """,
    # |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-57.494 on |r| <= ln(2)/2, proven.
    "float64": """
        0x1.75p+9 0x1.71547652b82fep+0 0x1.80000000003c3p+52 0x1.62e42fefa39efp-1
        0x1.abc9e3b39803fp-56 0x1.a98p-61 0x1.a98p-61 0x1.a98p-1 0x1.a98p-1 0x1.a98000000001p-2
        0x1.1baaaaaaaaa5fp-3 0x1.1baaaaaaa6adbp-5 0x1.c5ddddde038ccp-8 0x1.2e93e95292e4dp-10
        0x1.59cd9c77f0585p-13 0x1.59cd46ce88599p-16 0x1.33623250bff25p-19 0x1.ed1c39835bff3p-23
        0x1.64ef7f968459bp-26
    """,
    # |p(r) / exp(r) - 1| <= 2**-19.477 on |r| <= ln(2)/2, proven.
    "float16": """
        0x1.4p+5 0x1.715476p+0 0x1.8000fep+23 0x1.62e432p-1 0x0p+0 0x1.00000ap+0 0x1.fffffep-1
        0x1.000012p+0 0x1.00001p+0 0x1.fffep-2 0x1.555ba6p-3 0x1.575966p-5 0x1.0fd06p-7
    """,
    # |p(r) / exp(r) - 1| <= 2**-17.162 on |r| <= ln(2)/2, proven.
    "bfloat16": """
        0x1.ap+6 0x1.715476p+0 0x1.8000c2p+23 0x1.62e43p-1 0x0p+0 0x1p-30 0x1p-30 0x1.ffffe8p-1
        0x1.fff9ccp-1 0x1.0004e4p-1 0x1.57e0bcp-3 0x1.53a0d8p-5
    """,
}
CONSTANTS = {
    dtype: tuple(map(float.fromhex, numbers.split())) for dtype, numbers in _NUMBERS.items()
}
