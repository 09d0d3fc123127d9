"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's; and the table of powers of two.

Written by csrc/numerics/generate_coefficients.py; change that and run it again.
"""

SCALARS = ("limit", "log2_e", "round_shift", "ln2_high", "ln2_low", "numerator", "summand")

_NUMBERS = {
    # p(r) = r ((r + exp[0])^2 + exp[1]) + exp[2] is in proportion to exp(r),
    # within a factor of 1 +- 2**-25.625 on |r| <= ln(2)/16, proven.
    "float32": """
        0x1.ap+6 0x1.715476p+0 0x1.8p+20 0x1.62e43p-1 -0x1.05c61p-29 0x1.a1af94p-31 0x1.a1af94p-31
        0x1.801028p+0 0x1.dfe956p+1 0x1.8000c8p+2
    """,
    # p(r) = exp[0] + r (exp[1] + r (exp[2] + ... + r exp[7])) is in proportion to exp(r),
    # within a factor of 1 +- 2**-58.029 on |r| <= ln(2)/16, proven.
    "float64": """
        0x1.75p+9 0x1.71547652b82fep+0 0x1.8p+49 0x1.62e42fefa39efp-1 0x1.abc9e3b39803fp-56
        0x1.bd70a3d7bdd37p-61 0x1.bd70a3d7bdd37p-61 0x1.e6666666666a7p+0 0x1.e6666666666a7p+0
        0x1.e666666666964p-1 0x1.4444444443c85p-2 0x1.4444443602f41p-4 0x1.0369d053c1ee8p-6
        0x1.59e85a3d74c0dp-9 0x1.8b46a1b2f46f7p-12
    """,
    # p(r) = r ((r + exp[0])^2 + exp[1]) + exp[2] is in proportion to exp(r),
    # within a factor of 1 +- 2**-20.772 on |r| <= ln(2)/16, proven.
    "float16": """
        0x1.4p+5 0x1.715476p+0 0x1.8p+20 0x1.62e432p-1 0x0p+0 0x1.9f3b64p-1 0x1.9f3b5p-1
        0x1.801a96p+0 0x1.dfea92p+1 0x1.80093ap+2
    """,
    # p(r) = (r + exp[0])^2 + exp[1] is in proportion to exp(r),
    # within a factor of 1 +- 2**-17.008 on |r| <= ln(2)/16, proven.
    "bfloat16": """
        0x1.ap+6 0x1.715476p+0 0x1.8p+20 0x1.62e43p-1 0x0p+0 0x1.9f3b7ap-31 0x1.9f3b0cp-31
        0x1.001178p+0 0x1.ffd8eep-1
    """,
}
CONSTANTS = {
    dtype: tuple(map(float.fromhex, numbers.split())) for dtype, numbers in _NUMBERS.items()
}

_BITS = {
    "float32": """
        0x2f0b3a3e 0x2f07d424 0x2f059202 0x2f048e45 0x2f04e5be 0x2f06b7da 0x2f0a26de 0x2f0f5829
    """,
    "float64": """
        0x3c1d4e25b9fba53f 0x3c1df52653e4f097 0x3c1d6ccdb321b0a8 0x3c1d008a6d0e25e4
        0x3c1cb8d1bc36cf4a 0x3c1c98f24a1a9729 0x3c1ca487615d1cd1 0x3c1cdf7fdd478447
    """,
    "float16": """
        0x3e0a65d3 0x3e06ec7f 0x3e049567 0x3e037acc 0x3e03b956 0x3e057042 0x3e08c1a0 0x3e0dd293
    """,
    "bfloat16": """
        0x2fcf9774 0x2fd26159 0x2fd6de91 0x2fd69b46 0x2fd2ca18 0x2fd01335 0x2fce9029 0x2fce5cc3
    """,
}
POWERS = {dtype: tuple(int(word, 16) for word in bits.split()) for dtype, bits in _BITS.items()}
