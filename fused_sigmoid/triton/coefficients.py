"""Constants of 1 / (1 + exp(|x|)) by dtype: the scalars in the order of SCALARS, which
csrc/numerics/coefficients.h explains, then the polynomial's; and the table of powers of two. Those
of the loss, log(1 + exp(-|x|)), are the same for both halves.

Written by csrc/numerics/generate_coefficients.py; change that and run it again.
"""

SCALARS = ("limit", "log2_e", "round_shift", "ln2_high", "ln2_low", "numerator", "summand")
LOSS_SCALARS = ("limit", "log2_e", "round_shift", "ln2_high", "ln2_low", "inverse_scale", "summand")


def _numbers(texts: dict[str, str]) -> dict[str, tuple[float, ...]]:
    return {dtype: tuple(map(float.fromhex, text.split())) for dtype, text in texts.items()}


def _bits(texts: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {dtype: tuple(int(word, 16) for word in text.split()) for dtype, text in texts.items()}


CONSTANTS = _numbers(
    {
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
)

POWERS = _bits(
    {
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
)

LOSS_CONSTANTS = _numbers(
    {
        "float32": """
        0x1.ap+6 0x1.715476p+0 0x1.8p+20 0x1.62e43p-1 -0x1.05c61p-29 0x1p-30 0x1p+30
        """,
        "float64": """
        0x1.75p+9 0x1.71547652b82fep+0 0x1.8p+49 0x1.62e42fefa39efp-1 0x1.abc9e3b39803fp-56 0x1p-60
        0x1p+60
        """,
        "half": """
        0x1.ap+6 0x1.715476p+0 0x1.8p+20 0x1.62e43p-1 -0x1.05c61p-29 0x1p-30 0x1.fffffap+29
        """,
    }
)

LOSS_EXP = _numbers(
    {
        # p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[4]):
        # 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-30.260
        # on |r| <= ln(2)/16, proven.
        "float32": """
        0x1.508a96p-9 -0x1.00a846p+0 0x1.00a844p-1 -0x1.562ebcp-3 0x1.5635c8p-5
        """,
        # p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[7]):
        # 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-58.238
        # on |r| <= ln(2)/16, proven.
        "float64": """
        0x1.4f0c2fecba178p-33 -0x1.00000000a7862p+0 0x1.00000000a79d3p-1 -0x1.555555563183bp-3
        0x1.5555554730b33p-5 -0x1.111111c8c3197p-7 0x1.6c1d012028ebap-10 -0x1.9feb4e0ab2f31p-13
        """,
        # p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[4]):
        # 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-24.001
        # on |r| <= ln(2)/16, proven.
        "half": """
        0x1.508a96p-9 -0x1.00a846p+0 0x1.00a842p-1 -0x1.562ebcp-3 0x1.5635c8p-5
        """,
    }
)

LOSS_LOG1P = _numbers(
    {
        # q(e) = log1p[0] + e (log1p[1] + ... + e log1p[8]):
        # e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-27.272
        # on 0 <= e <= 1, proven.
        "float32": """
        -0x1.ffffccp-2 0x1.554d22p-2 -0x1.ff160ap-3 0x1.9305f6p-3 -0x1.39818cp-3 0x1.b23326p-4
        -0x1.d1f56ap-5 0x1.443a38p-6 -0x1.a6f30ap-9
        """,
        # q(e) = log1p[0] + e (log1p[1] + ... + e log1p[19]):
        # e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-56.225
        # on 0 <= e <= 1, proven.
        "float64": """
        -0x1.fffffffffff8cp-2 0x1.5555555550558p-2 -0x1.fffffffd8ad4dp-3 0x1.99999949ef039p-3
        -0x1.55554f35fae08p-3 0x1.2491f8d912de2p-3 -0x1.fffa2ca5ad1a2p-4 0x1.c6f48093538adp-4
        -0x1.98c934fba8553p-4 0x1.710eb876e7211p-4 -0x1.4ab19ef65ac7dp-4 0x1.1f8c63a4df238p-4
        -0x1.d517dbb272efap-5 0x1.58236d8a66483p-5 -0x1.b1ba5093f2e3ep-6 0x1.bf3997f25e029p-7
        -0x1.64e71e1957d98p-8 0x1.9961580a7a6d6p-10 -0x1.2a3e927b59a2ep-12 0x1.9cb8017cd8463p-16
        """,
        # q(e) = log1p[0] + e (log1p[1] + ... + e log1p[8]):
        # e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-25.350
        # on 0 <= e <= 1, proven.
        "half": """
        -0x1.ffffcep-2 0x1.554d22p-2 -0x1.ff160ap-3 0x1.9305fap-3 -0x1.39818cp-3 0x1.b23326p-4
        -0x1.d1f56ap-5 0x1.443a2ep-6 -0x1.a6f316p-9
        """,
    }
)

LOSS_POWERS = _bits(
    {
        "float32": """
        0x4e7f5829 0x4e7b3a3e 0x4e77d424 0x4e759202 0x4e748e45 0x4e74e5be 0x4e76b7da 0x4e7a26de
        """,
        "float64": """
        0x43afffffffeb0f3d 0x43af72b83c71e681 0x43af06fe0a25438e 0x43aebfdad5289621
        0x43aea09e66706d2b 0x43aeace5421a7b25 0x43aee89f994937d5 0x43af5818dce870b0
        """,
        "half": """
        0x4e7f5829 0x4e7b3a3c 0x4e77d425 0x4e759202 0x4e748e44 0x4e74e5be 0x4e76b7d9 0x4e7a26de
        """,
    }
)
