"""The GPU kernels of the binary cross entropy give the CPU's results, to the bit, and compile to
the machine code that was meant.

They run without a GPU, under Triton's interpreter, and compile without one. References besides the
CPU's kernels are the formula in NumPy's long double, and exact sums.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys

import numpy as np
import pytest
import torch

import fused_sigmoid
from fused_sigmoid import loss_operators
from tests import parameters, private_kernels

triton = pytest.importorskip("triton")
interpreted = importlib.import_module("tests.test_triton_interpreter")
static = importlib.import_module("tools.static")

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ("none", "mean", "sum")
SIZES = (1, 7, 1025, 2049)
# The interpreter takes its time.
DTYPES_AND_SIZES = [
    (dtype, size) for dtype in DTYPES for size in SIZES if dtype == torch.float32 or size < 1000
]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.fixture(scope="module")
def _interpreted_copy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read when the module is, and by @triton.jit
        package = private_kernels.load("interpreted_losses").__package__
        return importlib.import_module(f"{package}.binary_cross_entropy")


@pytest.fixture
def kernels(_interpreted_copy, monkeypatch):
    """A private interpreted copy of the kernels, on an interpreter that computes as a GPU does, and
    behind the operators on CUDA."""
    import triton.language as tl

    monkeypatch.setattr(loss_operators, "loss_kernels", lambda: _interpreted_copy)
    interpreted.compute_as_a_gpu(monkeypatch)
    # Triton has compiled its own function for GPUs.
    monkeypatch.setattr(tl, "sum", lambda x: tl.reduce(x, 0, tl.standard._sum_combine))
    with np.errstate(all="ignore"):  # overflows and NaN are among the results
        yield _interpreted_copy


def _beside(kernels, name):
    """Another module of the interpreted copy."""
    return sys.modules[f"{kernels.__package__}.{name}"]


@pytest.fixture
def in_large_blocks(kernels, monkeypatch):
    """For many numbers, over which the interpreter computes at once."""
    elementwise = _beside(kernels, "elementwise")
    blocks = elementwise.Blocks(0, 2**63 - 1, 2**16)
    monkeypatch.setattr(elementwise, "BLOCKS", dict.fromkeys(DTYPES, (blocks,)))


def _operator(suffix):
    return getattr(torch.ops.fused_sigmoid, f"_{suffix}").default


def _on_gpu(x, t, weight=None, pos_weight=None, reduction="mean", gradient=True, probability=True):
    """The results that are asked for."""
    return _operator("binary_cross_entropy_with_logits").redispatch(
        CUDA, x, t, weight, pos_weight, REDUCTIONS.index(reduction), gradient, probability
    )


def _backward_on_gpu(grad, x, t, weight=None, pos_weight=None, reduction="mean"):
    return _operator("binary_cross_entropy_with_logits_backward").redispatch(
        CUDA, grad, x, t, weight, pos_weight, REDUCTIONS.index(reduction)
    )


def _multiply_on_gpu(tensor, number):
    _operator("multiply_by_number_").redispatch(CUDA, tensor, number)


def run_step(x, t, weight=None, pos_weight=None, reduction="mean", grad=None):
    leaf = x.detach().requires_grad_()
    loss, probability = fused_sigmoid.binary_cross_entropy_with_logits(
        leaf, t, weight, pos_weight=pos_weight, reduction=reduction, return_probability=True
    )
    grad = torch.ones_like(loss) if grad is None else grad
    (gradient,) = torch.autograd.grad(loss, leaf, grad)
    return loss.detach(), gradient, probability


def assert_same(found, expected):
    """To the bit, but for what a NaN carries."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.stride() == expected.stride()
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[found.dtype.itemsize]
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    one, other = (each[~is_nan].contiguous().view(integers) for each in (found, expected))
    assert torch.equal(one, other)


def assert_all_same(found, expected, reduction):
    """Sums in float64 are formed in another order than the CPU's."""
    assert len(found) == len(expected)
    (loss, *others), (expected_loss, *expected_others) = found, expected
    if reduction != "none" and loss.dtype == torch.float64:
        torch.testing.assert_close(loss, expected_loss, rtol=2**-49, atol=0, equal_nan=True)
    else:
        assert_same(loss, expected_loss)
    for one, other in zip(others, expected_others, strict=True):
        assert_same(one, other)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def draw_logits(shape, dtype, seed=0):
    """Most of them moderate, some far out."""
    drawn = torch.randn(shape, generator=_generator(seed), dtype=torch.float64)
    return (drawn * 4 + drawn**5).to(dtype)


def draw_targets(shape, dtype, seed=1):
    """0, 1 and numbers between."""
    drawn = torch.rand(shape, generator=_generator(seed), dtype=torch.float64) * 2 - 0.5
    return drawn.clamp(0, 1).to(dtype)


def draw_weights(shape, dtype=torch.float32, seed=2):
    return (torch.rand(shape, generator=_generator(seed), dtype=torch.float64) * 3).to(dtype)


# Results.


@every_reduction
@pytest.mark.parametrize(("dtype", "size"), DTYPES_AND_SIZES, ids=str)
def test_results_are_those_of_the_cpu(kernels, dtype, reduction, size):
    x, t = draw_logits(size, dtype), draw_targets(size, dtype)
    expected = run_step(x, t, reduction=reduction)
    assert_all_same(_on_gpu(x, t, reduction=reduction), expected, reduction)
    loss, gradient, probability = expected
    for wanted, others in ((0, 0), []), ((1, 0), [gradient]), ((0, 1), [probability]):
        found = _on_gpu(x, t, None, None, reduction, *map(bool, wanted))
        assert_all_same(found, (loss, *others), reduction)


@every_dtype
@every_reduction
@pytest.mark.parametrize("size", [7, 1025])
def test_weighted_results_are_those_of_the_cpu(kernels, dtype, reduction, size):
    x, t = draw_logits(size, dtype), draw_targets(size, dtype)
    weight, pos_weight = draw_weights(size, seed=3), draw_weights(size, seed=4)
    for weights in (weight, None), (None, pos_weight), (weight, pos_weight):
        expected = run_step(x, t, *weights, reduction=reduction)
        assert_all_same(_on_gpu(x, t, *weights, reduction=reduction), expected, reduction)


@every_dtype
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shapes",
    [((), ()), ((1,), None), (None, (1, 1)), ((5,), (7, 1)), ((3, 1, 5), (7, 5)), (None, (5,))],
    ids=str,
)
def test_weights_are_broadcast(kernels, dtype, weight_dtype, shapes):
    x, t = draw_logits((3, 7, 5), dtype), draw_targets((3, 7, 5), dtype)
    weights = [
        None if shape is None else draw_weights(shape, weight_dtype, seed)
        for seed, shape in enumerate(shapes)
    ]
    expected = run_step(x, t, *weights, reduction="none")
    assert_all_same(_on_gpu(x, t, *weights, reduction="none"), expected, "none")


def _memory_seen(during):
    with interpreted.accesses() as seen:
        during()
    return np.concatenate([*seen, np.empty(0, np.uint64)])


def test_a_weight_of_one_number_is_no_tensor_of_the_full_size(kernels):
    x, t = draw_logits(2000, torch.float32), draw_targets(2000, torch.float32)
    weight, pos_weight = torch.tensor([0.5]), torch.tensor(3.0)
    seen = _memory_seen(lambda: _on_gpu(x, t, weight, pos_weight, "none", False, False))
    for number in (weight, pos_weight):
        assert number.data_ptr() in seen
    assert len(seen) < 3 * 2000 + 100


LAYOUTS = {
    "transposed": lambda x: x.t(),
    "slice": lambda x: x[:, 1:-1],
    "every second": lambda x: x[::2, ::2],
    "column": lambda x: x[:, :1],
    "expanded": lambda x: x[:1].expand(6, -1),
    "channels last": lambda x: x.reshape(2, 3, 4, -1).to(memory_format=torch.channels_last),
    "a number": lambda x: x[0, 0],
    "unaligned": lambda x: x.flatten()[1:],
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_reduction
@pytest.mark.parametrize("names", [*((n, n) for n in LAYOUTS), "mixed"], ids=str)
def test_any_layout(kernels, dtype, reduction, names):
    x, t = draw_logits((24, 20), dtype), draw_targets((24, 20), dtype)
    if names == "mixed":
        x, t = x.view(2, 3, 4, 20), t.view(2, 3, 4, 20).to(memory_format=torch.channels_last)
    else:
        x, t = (LAYOUTS[name](each) for name, each in zip(names, (x, t), strict=True))
    weight = draw_weights(x.shape[-1:])
    for weights in ((), (weight, weight.flip(0))):
        expected = run_step(x, t, *weights, reduction=reduction)
        assert_all_same(_on_gpu(x, t, *weights, reduction=reduction), expected, reduction)


@every_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_mixed_dtypes(kernels, dtype, target_dtype, reduction):
    x, t = draw_logits((12, 10), dtype), draw_targets((10, 12), target_dtype).t()
    expected = run_step(x, t, reduction=reduction)
    assert_all_same(_on_gpu(x, t, reduction=reduction), expected, reduction)


@every_dtype
def test_every_kind_of_number(kernels, dtype):
    x = interpreted.every_half(dtype) if dtype.itemsize == 2 else interpreted.inputs(dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-30, -1e30], dtype=dtype)
    # The interpreter takes its time; every half is tried on the CPU.
    x = torch.cat([x[::1000] if dtype == torch.float64 else x[::31], special])
    targets = torch.tensor([0.0, 1.0, 0.3, -0.0, 1.5, -2.0, torch.inf, torch.nan], dtype=dtype)
    for turn in range(len(targets)):
        t = targets.roll(turn).repeat(len(x) // 8 + 1)[: len(x)]
        assert_all_same(_on_gpu(x, t, reduction="none"), run_step(x, t, reduction="none"), "none")
    weights = torch.tensor([0.5, 0, torch.inf, torch.nan, -1]).repeat(len(x) // 5 + 1)[: len(x)]
    t = draw_targets(x.shape, dtype)
    for each in (weights, None), (None, weights), (weights, weights.flip(0)):
        expected = run_step(x, t, *each, reduction="none")
        assert_all_same(_on_gpu(x, t, *each, reduction="none"), expected, "none")


@every_reduction
def test_nan_and_infinity_in_a_sum(kernels, reduction):
    for special in (torch.nan, torch.inf, -torch.inf):
        x = torch.tensor([1.0, special, -2.0])
        for t in torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]):
            expected = run_step(x, t, reduction=reduction)
            assert_all_same(_on_gpu(x, t, reduction=reduction), expected, reduction)


# Beside other sources than the CPU's kernels.


def _exact(tensor):
    return (
        (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().astype("longdouble")
    )


def _formula(x, t, weight=1, pos_weight=1):
    """Loss, gradient and probability in long double."""
    e = np.exp(-np.abs(x))
    positive, negative = pos_weight * t, 1 - t
    upper, lower = np.maximum(x, 0) + np.log1p(e), np.maximum(-x, 0) + np.log1p(e)
    p, q = np.where(x < 0, e, 1) / (1 + e), np.where(x < 0, 1, e) / (1 + e)
    loss = np.where(negative == 0, 0, negative * upper) + np.where(
        positive == 0, 0, positive * lower
    )
    return weight * loss, weight * (negative * p - positive * q), p


# Relative errors where no term cancels another; a half's is its rounding.
BOUNDS = {
    torch.float64: 2**-50,
    torch.float32: 2**-21,
    torch.float16: 2**-10.9,
    torch.bfloat16: 2**-7.9,
}


@every_dtype
@pytest.mark.parametrize("is_weighted", [False, True])
def test_results_are_those_of_the_formula(kernels, dtype, is_weighted):
    x = draw_logits(1025, dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for t in (torch.zeros_like(x), torch.ones_like(x), draw_targets(x.shape, dtype)):
        weights = (
            (draw_weights(x.shape, seed=3), draw_weights(x.shape, seed=4)) if is_weighted else ()
        )
        results = _on_gpu(x, t, *weights, reduction="none")
        references = _formula(*map(_exact, (x, t, *weights)))
        # A gradient between the two targets is the difference of two terms.
        is_between = ((t > 0) & (t < 1)).numpy()
        slack = (0, np.where(is_between, 1 + 9 * is_weighted, 0), 0)
        for result, reference, more in zip(results, references, slack, strict=True):
            tolerance = BOUNDS[dtype] * (np.abs(reference) + more) + 16 * smallest
            assert (np.abs(_exact(result) - reference) <= tolerance).all()


@pytest.mark.parametrize(("dtype", "size"), [*DTYPES_AND_SIZES, (torch.float32, 6_001)], ids=str)
def test_sums_are_exact_but_for_one_rounding(kernels, dtype, size, monkeypatch):
    # The second kernel goes round more than once.
    monkeypatch.setattr(kernels, "TOTAL_BLOCK_SIZE", 16)
    x, t = draw_logits(size, torch.float64), draw_targets(size, torch.float64)
    x, t = x.to(dtype), t.to(dtype)
    if dtype.itemsize == 2:
        # The losses are summed before they are rounded.
        exact = math.fsum(_formula(_exact(x), _exact(t))[0].astype(np.float64))
        rtol = 2**-20 + torch.finfo(dtype).eps / 2
    else:
        (losses,) = _on_gpu(x, t, None, None, "none", False, False)
        exact = math.fsum(losses.double().tolist())
        rtol = 0 if dtype == torch.float32 else 2**-50
    for reduction, expected in ("sum", exact), ("mean", exact / size):
        (found,) = _on_gpu(x, t, None, None, reduction, False, False)
        rounded = torch.tensor(expected, dtype=torch.float64).to(dtype)
        if rtol == 0:
            assert found == rounded
        elif not (rounded.isinf() and found.isinf()):
            assert abs(found.double() - expected) <= rtol * expected


def test_sums_keep_what_float32_would_lose(kernels):
    # Beside a large loss none of the small ones would remain, which are 2 together.
    x, t = torch.full((2**15,), -9.7), torch.zeros(2**15)
    x[0] = 2.0**24
    (found,) = _on_gpu(x, t, None, None, "sum", False, False)
    assert found == 2.0**24 + 2


@every_dtype
def test_empty_tensors(kernels, dtype):
    x = torch.empty(0, 3, dtype=dtype)
    for reduction in REDUCTIONS:
        expected = run_step(x, x, reduction=reduction)
        assert_all_same(_on_gpu(x, x, reduction=reduction), expected, reduction)
        if reduction != "none":
            grad = torch.ones((), dtype=dtype)
            assert _backward_on_gpu(grad, x, x, reduction=reduction).shape == (0, 3)
    _multiply_on_gpu(x, torch.tensor(2.0))


# The quotient.


@pytest.mark.usefixtures("in_large_blocks")
@pytest.mark.parametrize("ulps", [-2, 2])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_quotient_by_a_reciprocal_has_the_bits_of_the_rounded_division(
    kernels, dtype, ulps, monkeypatch
):
    import triton.language as tl

    calls = []
    reciprocal = interpreted.reciprocal_off_by(ulps, calls)
    x = interpreted.every_half(dtype) if dtype.itemsize == 2 else interpreted.inputs(dtype)
    x = x[~x.isnan()]
    t = draw_targets(x.shape, dtype)
    rounded = _on_gpu(x, t, None, None, "none", True, False)
    exponential = _beside(kernels, "exponential")
    monkeypatch.setattr(exponential, "_IS_NVIDIA", tl.constexpr(True))
    monkeypatch.setattr(exponential, "_reciprocal", reciprocal)
    monkeypatch.setattr(exponential, "looked_up", exponential.chosen)
    approximated = _on_gpu(x, t, None, None, "none", True, False)
    assert calls
    for one, other in zip(approximated, rounded, strict=True):
        assert_same(one, other)


# The backward pass.


@pytest.mark.parametrize("factor", [1.0, 0.37, 65536.0, torch.inf])
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_the_backward_pass_of_a_float16_mean_is_that_of_the_cpu(kernels, target_dtype, factor):
    x, t = draw_logits((30, 40), torch.float16), draw_targets((40, 30), target_dtype).t()
    for weights in ((), (draw_weights(40), draw_weights(30)[:, None])):
        grad = torch.tensor(factor, dtype=target_dtype)
        expected = run_step(x, t, *weights, grad=grad)[1]
        assert_same(_backward_on_gpu(grad, x, t, *weights), expected)


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_backward_pass_multiplies_by_a_number(kernels, dtype, reduction):
    x, t = draw_logits(1025, dtype), draw_targets(1025, dtype)
    kept = _on_gpu(x, t, None, None, reduction, True, False)[1]
    one, two = torch.tensor([1.0, 2.0], dtype=dtype)
    assert_same(_backward_on_gpu(one, x, t, reduction=reduction), kept)
    doubled = _backward_on_gpu(two, x, t, reduction=reduction)
    torch.testing.assert_close(doubled, 2 * kept, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert doubled.dtype == dtype


@every_dtype
@pytest.mark.parametrize("number_dtype", [torch.float64, torch.float32], ids=str)
def test_multiplication_by_one_touches_nothing_but_the_number(kernels, dtype, number_dtype):
    tensor = draw_logits(9000, dtype)
    tensor[5] = torch.nan
    before, one = tensor.clone(), torch.ones((), dtype=number_dtype)
    seen = _memory_seen(lambda: _multiply_on_gpu(tensor, one))
    assert set(seen) == {one.data_ptr()}
    assert_same(tensor, before)


@every_dtype
@pytest.mark.parametrize("factor", [0.37, -3.0, 0.0, 1 + 2**-23, torch.inf, torch.nan])
def test_multiplication_by_a_number_is_that_of_torch(kernels, dtype, factor):
    block = kernels.MULTIPLY_BLOCK_SIZE
    number = torch.tensor(factor, dtype=torch.promote_types(dtype, torch.float32))
    for size in (1, block - 1, block, 2 * block + 1):
        tensor = draw_logits(size, dtype)
        expected = tensor.clone().mul_(factor)
        _multiply_on_gpu(tensor, number)
        assert_same(tensor, expected)
    for layout in LAYOUTS.values():
        tensor = layout(draw_logits((24, 20), dtype))
        if tensor.numel() == 0 or 0 in tensor.stride():
            continue
        whole = tensor._base if tensor._base is not None else tensor
        expected = whole.clone()
        places = expected.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        places.mul_(factor)
        _multiply_on_gpu(tensor, number)
        assert_same(whole, expected)


# Memory.


@every_dtype
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_outside_the_tensors_is_touched(kernels, dtype, weighted, monkeypatch):
    elementwise, guard = _beside(kernels, "elementwise"), 64
    small = elementwise.BLOCKS[dtype][0].size
    made = []

    def fresh(like, beside, dtype):
        buffer = torch.full((guard + like.numel() + guard,), 7.0, dtype=dtype)
        made.append(buffer)
        return buffer[guard : guard + like.numel()].view(like.shape)

    monkeypatch.setattr(kernels, "_fresh", fresh)
    weight_dtype = torch.promote_types(dtype, torch.float32)
    for size in (1, 2, small - 1, small, small + 1, 3 * small + 7):
        made.clear()
        x, t = draw_logits(size, dtype), draw_targets(size, dtype)
        weights = (draw_weights(size, weight_dtype),) * 2 if weighted else ()
        seen = _memory_seen(lambda x=x, t=t, w=weights: _on_gpu(x, t, *w, reduction="none"))
        expected = [x, t, *weights, *(buffer[guard : guard + size] for buffer in made)]
        allowed = np.concatenate(
            [
                each.data_ptr() + each.itemsize * np.arange(size, dtype=np.uint64)
                for each in expected
            ]
        )
        # Every element once.
        np.testing.assert_array_equal(np.sort(seen), np.sort(allowed))
        assert len(made) == 3
        for buffer in made:
            assert (buffer[:guard] == 7).all()
            assert (buffer[guard + size :] == 7).all()


def test_the_sums_of_blocks_are_written_once(kernels):
    x, t = draw_logits(4097, torch.float32), draw_targets(4097, torch.float32)
    seen = _memory_seen(lambda: _on_gpu(x, t, None, None, "sum", False, False))
    # Each operand once, each of 17 sums once written and once read, and the loss.
    assert len(seen) == 2 * 4097 + 2 * 17 + 1


# What the kernels compile to.

NAMES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
every_name = pytest.mark.parametrize("dtype", NAMES)
CAPABILITIES = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32)]
H100 = CAPABILITIES[1]
# Which tensors a call has: the gradient of a mean, weighted and not, a loss alone, everything that
# is written, and the backward pass of a mean in float16.
CALLS = {
    "training": ("logits", "targets", "sums", "gradients"),
    "weighted": ("logits", "targets", "weights", "pos_weights", "sums", "gradients"),
    "loss": ("logits", "targets", "sums"),
    "none": ("logits", "targets", "losses", "gradients", "probabilities"),
    "backward": ("logits", "targets", "gradients", "factor"),
}
READ = ("logits", "targets", "weights", "pos_weights")
WRITTEN = ("losses", "gradients", "probabilities")
every_call = pytest.mark.parametrize("call", CALLS)


def _compiled(kernel, types, constants, target, options, is_aligned):
    """As a launch compiles it, whose count is not specialized."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if is_aligned and signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget(*target), options=dict(options))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles the kernel of a call, once, and never finds it in a user's cache."""
    losses = importlib.import_module("fused_sigmoid.triton.binary_cross_entropy")
    seen = {}

    def compile_once(call, dtype, target=H100, is_aligned=True, module=losses, size=None):
        size = size or static.block_size(dtype)
        key = (call, dtype, target, is_aligned, module, size)
        if key in seen:
            return seen[key]
        kernel, wide = module.fused_binary_cross_entropy, NAMES[dtype]
        beside = "fp64" if dtype == "float64" else "fp32"
        other = {"sums": "fp64", "weights": beside, "pos_weights": beside, "factor": "fp32"}
        types = {name: f"*{other.get(name, wide)}" for name in CALLS[call]}
        constants = {
            name: None for name in (*READ, *WRITTEN, "sums", "factor") if name not in types
        }
        constants |= {"are_numbers": 0, "block_size": size}
        types |= {"scale": "fp64", "count": "i64"}
        options = module.LAUNCH_OPTIONS
        seen[key] = _compiled(kernel, types, constants, target, options, is_aligned)
        return seen[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield compile_once


def _bits(name, dtype):
    if dtype == "float64":
        return 64
    return 32 if name.endswith("weights") else 8 * getattr(torch, dtype).itemsize


def _lines(ptx):
    body = ptx[ptx.index("{") : ptx.index("$L__func_end0")]
    return re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\S*(?:[ \t].*)?;)", body, re.MULTILINE)


def _widths(ptx, kind):
    """The bits of each global access of one thread."""
    accesses = re.findall(rf"{kind}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return [int(vector or 1) * int(bits) for vector, bits in accesses]


@pytest.mark.parametrize(
    ("dtype", "call", "target"),
    parameters.chosen(
        itertools.product(NAMES, CALLS, CAPABILITIES),
        lambda dtype, call, target: target == H100 or (call, dtype) == ("training", "float32"),
    ),
    ids=str,
)
def test_whole_blocks_are_read_and_written_128_bits_at_a_time(compiled, call, dtype, target):
    ptx, elements = compiled(call, dtype, target).asm["ptx"], static.elements(dtype)
    for kind, names in (("ld", READ), ("st", WRITTEN)):
        whole = [width for width in _widths(ptx, kind) if width >= 128]
        of_tensors = [_bits(name, dtype) for name in CALLS[call] if name in names]
        assert sum(whole) == elements * sum(of_tensors)
    assert not [line for line in _lines(ptx) if re.match(r"call|(ld|st)\.local", line)]


@every_name
def test_unaligned_tensors_are_read_and_written_by_elements(compiled, dtype):
    ptx = compiled("training", dtype, is_aligned=False).asm["ptx"]
    assert set(_widths(ptx, "ld")) == {_bits("logits", dtype)}
    # The sums are of float64.
    assert set(_widths(ptx, "st")) == {_bits("gradients", dtype), 64}


# Operations for one element, in float32. Of fma m shifted, r twice, four of exp and one of its
# table, eight of the logarithm and the last, one of the loss and one of the gradient, and four of
# the quotient; of products e, one of the logarithm, two of the gradient and one of the quotient; of
# sums m, that below the quotient, 1 - t and 1 - smaller. What nobody asks for is left out.
FMA = {"training": 23, "loss": 18, "backward": 13, "none": 23}
MUL = {"training": 5, "loss": 2, "backward": 3, "none": 5}
ADD = {"training": 4, "loss": 2, "backward": 4, "none": 4}
# The probability's own, as test_triton_offline.py counts them.
OF_PROBABILITY = {"fma": {"float32": 10, "float16": 7, "bfloat16": 6}, "mul": 1, "add": 3}


@pytest.mark.parametrize(
    ("call", "dtype", "target"),
    parameters.chosen(
        itertools.product(FMA, ["float32", "float16", "bfloat16"], CAPABILITIES),
        lambda call, dtype, target: target == H100 or (call, dtype) == ("training", "float32"),
    ),
    ids=str,
)
def test_arithmetic_is_exactly_the_intended_and_rounds_to_nearest(compiled, call, dtype, target):
    ptx = compiled(call, dtype, target).asm["ptx"]
    counts = dict.fromkeys(("fma", "mul", "add"), 0)
    for line in _lines(ptx):
        found = re.match(r"(fma|mul|add|sub)\.rn\.f32(x2)?\s", line)
        if found:
            counts["add" if found[1] == "sub" else found[1]] += 2 if found[2] else 1
    expected = {"fma": FMA[call], "mul": MUL[call], "add": ADD[call]}
    if call == "none":
        more = OF_PROBABILITY | {"fma": OF_PROBABILITY["fma"][dtype]}
        expected = {name: count + more[name] for name, count in expected.items()}
    paths = 2 * static.elements(dtype)  # with and without a mask
    assert counts == {name: paths * count for name, count in expected.items()}
    # The one approximate instruction; neither its operand nor its result is ever subnormal.
    reciprocals = {"training": 1, "loss": 0, "backward": 1, "none": 2}[call]
    assert ptx.count("rcp.approx.ftz.f32") == paths * reciprocals
    assert not re.search(r"\.ftz|\.approx|\.full|\.local", ptx.replace("rcp.approx.ftz.f32", ""))
    # The limit of |x| lets NaN through, which the interpreter does with any minimum. Triton 3.9
    # limits a half before it widens it, with the same result, since the limit is a half too.
    limits = re.findall(r"min\.NaN\.(?:f32|b?f16)(x2)?\s", ptx)
    assert sum(2 if pair else 1 for pair in limits) >= paths
    # A loss is added in float64, and widened without a rounding.
    assert ptx.count("cvt.f64.f32") >= (paths if "sums" in CALLS[call] else 0)


# Of one block without a mask, for compute capability 9.0; seen are up to 59.7, 67, 44.7 (45.3 with
# Triton 3.6), 69.8 and 38.4. An H100 is free to execute 106 for an element of float32, and 53 for
# one of a half, while it moves the memory of "training".
INSTRUCTIONS = {"training": 60, "weighted": 68, "loss": 45, "none": 70, "backward": 39}
if triton.__version__.startswith("3.6."):
    INSTRUCTIONS["loss"] = 46


@every_call
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_instructions_per_element(compiled, call, dtype):
    found = compiled(call, dtype)
    block, used = static.whole_block(found.asm["sass"]), static.resources(found.asm["cubin"])
    assert len(block) <= static.elements(dtype) * INSTRUCTIONS[call]
    # Past the tail of the tensor, and to no slow path of a division.
    assert sum("BRA" in line or "CALL" in line for line in block) == 1
    assert used["STACK"] == used["LOCAL"] == 0
    # Where the warps of a program leave their sums: a number for each.
    assert found.metadata.shared == (32 if "sums" in CALLS[call] else 0)


@every_name
def test_small_blocks_compile(compiled, dtype):
    small = importlib.import_module("fused_sigmoid.triton.elementwise").BLOCKS
    size = small[getattr(torch, dtype)][0].size
    ptx = compiled("training", dtype, size=size).asm["ptx"]
    assert size // 128 * _bits("logits", dtype) in _widths(ptx, "ld")


@every_call
def test_offsets_have_64_bits(compiled, call):
    ttir = compiled(call, "bfloat16").asm["ttir"]
    added = re.findall(r"tt\.addptr .* : tensor<.*>, tensor<\d+x(\w+)>", ttir)
    tensors = [name for name in CALLS[call] if name in READ + WRITTEN]
    assert added == ["i64"] * 2 * len(tensors)
    assert re.search(r"arith\.extsi %\w+ : i32 to i64", ttir)


@pytest.mark.parametrize(
    ("dtype", "target"),
    parameters.chosen(
        itertools.product(NAMES, [*CAPABILITIES, ("hip", "gfx942", 64)]),
        lambda dtype, target: target == H100 or dtype == "bfloat16",
    ),
    ids=str,
)
def test_the_other_kernels_compile(compiled, dtype, target):
    from fused_sigmoid.triton import binary_cross_entropy as losses

    size = losses.MULTIPLY_BLOCK_SIZE
    found = _compiled(
        losses.fused_multiply_by_number,
        {"tensor": f"*{NAMES[dtype]}", "number": "*fp32", "count": "i64"},
        {"block_size": size},
        *(target, losses.LAUNCH_OPTIONS, True),
    )
    if target[0] == "cuda":
        ptx, bits = found.asm["ptx"], _bits("logits", dtype) * size // 128
        for kind in ("ld", "st"):
            assert sum(width for width in _widths(ptx, kind) if width >= 128) == bits
        # Nothing is read before the number is compared.
        lines = _lines(ptx)
        first = next(i for i, line in enumerate(lines) if line.startswith("bra"))
        assert sum("ld.global" in line for line in lines[:first]) == 1
        assert not any("st.global" in line for line in lines[:first])
    total = _compiled(
        losses.fused_binary_cross_entropy_total,
        {"sums": "*fp64", "loss": f"*{NAMES[dtype]}", "divisor": "fp64", "count": "i64"},
        {"block_size": losses.TOTAL_BLOCK_SIZE},
        *(target, losses.TOTAL_OPTIONS, True),
    )
    assert total.metadata.num_warps * target[2] <= 1024  # threads, the most that a program has
    if target[0] == "cuda":
        used = static.resources(total.asm["cubin"])
        assert used["REG"] <= 128  # of 64 Ki, for 512 threads
        assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("count", [1, 16, 1000, 2**31, 2**40])
@pytest.mark.parametrize("offset", [0, 1])
def test_what_triton_compiles_apart(count, offset):
    # By its own reading of the arguments: where tensors begin and which there are, and no numbers.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from fused_sigmoid.triton import binary_cross_entropy as losses

    kernel = losses.fused_binary_cross_entropy
    backend = make_backend(GPUTarget("cuda", 90, 32))
    read = create_function_from_signature(kernel.signature, kernel.params, backend)
    tensor = torch.zeros(64)[offset:]
    arguments = (tensor, tensor, None, None, None, tensor.double(), tensor, None, None, 1.0, count)
    _, specialization, _ = read(*arguments, are_numbers=0, block_size=1024)
    mark = "D" if offset == 0 else ""
    assert specialization[:2] == [("*fp32", mark)] * 2
    assert specialization[2:5] == [("constexpr", None)] * 3
    assert specialization[9:11] == [("fp64", None), ("i64", None)]


@pytest.mark.parametrize(
    ("call", "dtype"),
    parameters.chosen(
        itertools.product(CALLS, NAMES),
        lambda call, dtype: call != "loss" and dtype in ("float64", "bfloat16"),
    ),
)
def test_it_compiles_for_amd(call, dtype, compiled, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    package = private_kernels.load("losses_for_amd").__package__
    module = importlib.import_module(f"{package}.binary_cross_entropy")
    found = compiled(call, dtype, ("hip", "gfx942", 64), module=module)
    code = found.asm["amdgcn"]
    assert not re.search(r"^\s+(v_(exp|log)_f|scratch_)", code, re.MULTILINE)
    assert not re.search(r"_spill_count: *[1-9]", code)


# Where Triton is missing.


@every_dtype
@every_reduction
@pytest.mark.parametrize("is_weighted", [False, True])
def test_without_triton(dtype, reduction, is_weighted, monkeypatch):
    monkeypatch.setattr(loss_operators, "triton_kernels", dict)
    x, t = draw_logits(500, dtype), draw_targets(500, dtype)
    weights = (draw_weights(500), draw_weights(1)) if is_weighted else ()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype.itemsize > 2 else {}
    expected = run_step(x, t, *weights, reduction=reduction)
    found = _on_gpu(x.requires_grad_(), t, *weights, reduction=reduction)
    for one, other in zip(found, expected, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, **tolerance)
    if reduction != "none":
        grad = torch.tensor(0.5, dtype=dtype)
        one = _backward_on_gpu(grad, x, t, *weights, reduction=reduction)
        torch.testing.assert_close(one, 0.5 * expected[1], **tolerance)
    tensor = torch.ones(3)
    _multiply_on_gpu(tensor, torch.tensor(2.0))
    assert tensor.tolist() == [2, 2, 2]
