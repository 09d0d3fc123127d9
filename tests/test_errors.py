"""Every error names the argument, what it was and what is accepted; it has the exception type
torch.sigmoid raises for the same call, and leaves the tensors as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import silu

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, _extension
from fused_sigmoid._extension import extension

PACKAGE = Path(fused_sigmoid.__file__).parent
SAVED = ("auto", "derivative", "input", "output")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def raised(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function(*arguments, **keywords)
    return caught.value


# What is not a tensor.

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sigmoid": (fused_sigmoid.sigmoid, torch.sigmoid),
    "sigmoid_": (fused_sigmoid.sigmoid_, torch.sigmoid_),
    "sigmoid_with_derivative": (fused_sigmoid.sigmoid_with_derivative, torch.sigmoid),
    "module": (FusedSigmoid(), torch.nn.Sigmoid()),
    "out": (
        lambda input: fused_sigmoid.sigmoid(input, out=torch.zeros(1)),
        lambda input: torch.sigmoid(input, out=torch.zeros(1)),
    ),
}
NOT_TENSORS = {"float": 1.0, "list": [1.0], "ndarray": numpy.ones(2), "NoneType": None, "str": "x"}


@pytest.mark.parametrize("kind", NOT_TENSORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_not_a_tensor(name: str, kind: str) -> None:
    ours, torchs = FUNCTIONS[name]
    error, expected = raised(ours, NOT_TENSORS[kind]), raised(torchs, NOT_TENSORS[kind])
    assert type(error) is type(expected) is TypeError
    assert "'input'" in str(error)
    assert f"must be Tensor, not {kind}" in str(error)


def test_not_a_tensor_under_a_function_mode() -> None:
    with torch.device("cpu"), pytest.raises(TypeError, match=r"'input'.*must be Tensor, not float"):
        fused_sigmoid.sigmoid(1.0)


def test_no_argument_and_too_many() -> None:
    for arguments in ((), (torch.zeros(1), torch.zeros(1))):
        assert type(raised(fused_sigmoid.sigmoid, *arguments)) is TypeError
        assert type(raised(torch.sigmoid, *arguments)) is TypeError


# Tensors that have no sigmoid.


def _unsupported() -> dict[str, tuple[Callable[[], Tensor], type[BaseException]]]:
    return {
        "torch.float8_e4m3fn": (
            lambda: torch.ones(2).to(torch.float8_e4m3fn),
            NotImplementedError,
        ),
        "torch.float8_e5m2": (lambda: torch.ones(2).to(torch.float8_e5m2), NotImplementedError),
        "torch.complex32": (lambda: torch.ones(2).to(torch.complex32), NotImplementedError),
        "torch.sparse_coo": (lambda: torch.eye(2).to_sparse(), NotImplementedError),
        "torch.sparse_csr": (lambda: torch.eye(2).to_sparse_csr(), RuntimeError),
        "torch.sparse_csc": (lambda: torch.eye(2).to_sparse_csc(), RuntimeError),
        "torch.sparse_bsr": (lambda: torch.eye(2).to_sparse_bsr((1, 1)), RuntimeError),
    }


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", _unsupported())
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtype_or_layout_without_a_sigmoid(name: str, kind: str) -> None:
    make, type_of_error = _unsupported()[kind]
    ours, torchs = FUNCTIONS[name]
    error, expected = raised(ours, make()), raised(torchs, make())
    assert type(error) is type(expected)
    if name != "out":  # torch's out= of sparse tensors differs
        assert type(error) is type_of_error
    if "can't be cast" not in str(expected):  # which is torch's message for out, and clear
        assert "argument 'input'" in str(error)
        assert kind in str(error)
        assert "accepted are strided tensors of float64" in str(error)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_older_nested_tensor_is_called_so(name: str) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2)])
    with pytest.raises(NotImplementedError, match=r"'input' has nested, layout torch\.strided"):
        FUNCTIONS[name][0](nested)


def test_what_torch_says_of_out_is_kept() -> None:
    """The input has a sigmoid: no message about it."""
    x = torch.ones(2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        for input, out in ((dual, torch.empty(2)), (x, dual)):
            error = raised(lambda i, o: fused_sigmoid.sigmoid(i, out=o), input, out)
            expected = raised(lambda i, o: torch.sigmoid(i, out=o), input, out)
            assert (type(error), str(error)) == (type(expected), str(expected))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_pair_of_a_quantized_tensor() -> None:
    """A quantized derivative would need a scale of its own."""
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    with pytest.raises(RuntimeError, match=r"'input' has .*torch.quint8; accepted are"):
        fused_sigmoid.sigmoid_with_derivative(quantized)


# `saved`


@pytest.mark.parametrize("saved", ["nonsense", "", "Auto", None, 3, ("auto",), b"auto"])
@pytest.mark.parametrize(
    "call",
    [
        lambda saved: fused_sigmoid.sigmoid(torch.ones(2), saved=saved),
        lambda saved: fused_sigmoid.sigmoid(torch.ones(2), out=torch.ones(2), saved=saved),
        lambda saved: fused_sigmoid.sigmoid(torch.ones(2, dtype=torch.complex64), saved=saved),
        lambda saved: torch.func.vmap(lambda x: fused_sigmoid.sigmoid(x, saved=saved))(
            torch.ones(2)
        ),
        lambda saved: FusedSigmoid(saved),
        lambda saved: FusedSigmoid(saved=saved),
    ],
    ids=["function", "out", "complex", "vmap", "module", "keyword"],
)
def test_unknown_saved(call: Callable[[Any], Any], saved: Any) -> None:
    error = raised(call, saved)
    assert type(error) is ValueError
    accepted = "accepted are 'auto', 'derivative', 'input', 'output'"
    assert str(error) == f"argument 'saved' is {saved!r}; {accepted}"


@pytest.mark.parametrize("module", [False, True])
def test_unknown_saved_under_compile(module: bool) -> None:
    def call(x: Tensor) -> Tensor:
        return FusedSigmoid("nonsense")(x) if module else fused_sigmoid.sigmoid(x, saved="nonsense")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="'nonsense'; accepted are 'auto', 'derivative', 'inp"):
            torch.compile(call, backend="eager")(torch.ones(2))


def test_unknown_saved_under_compile_of_the_full_graph() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def call(x: Tensor) -> Tensor:
        return fused_sigmoid.sigmoid(x, saved="nonsense")

    # Dynamo wraps every exception of the user's code in its own; torch 2.11's loses the quotation
    # marks of what Python 3.14 formats.
    loses_marks = sys.version_info >= (3, 14) and torch.__version__ < (2, 12)
    given = "argument 'saved' is nonsense" if loses_marks else "'nonsense'"
    message = f"{given}; accepted are 'auto', 'derivative', 'input', 'output'"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        call(torch.ones(2))


def test_module_changed_afterwards() -> None:
    module = FusedSigmoid()
    module.saved = "nonsense"
    with pytest.raises(ValueError, match="'nonsense'; accepted are 'auto'"):
        module(torch.ones(2))


@pytest.mark.parametrize("saved", SAVED)
def test_saved_need_not_be_interned(saved: str) -> None:
    built_at_run_time = "".join(list(saved))
    assert fused_sigmoid.sigmoid(torch.zeros(1), saved=built_at_run_time).item() == 0.5


# `out`


def _expanded() -> Tensor:
    return torch.zeros(1).expand(3)


_memory = torch.arange(4.0)

OUT_ERRORS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "integer": (lambda: torch.ones(3), lambda: torch.zeros(3, dtype=torch.int64)),
    "bool": (lambda: torch.ones(3), lambda: torch.zeros(3, dtype=torch.bool)),
    "real for complex": (lambda: torch.ones(3, dtype=torch.complex64), lambda: torch.zeros(3)),
    "on another device": (lambda: torch.ones(3), lambda: torch.zeros(3, device="meta")),
    "overlapping itself": (lambda: torch.ones(3), _expanded),
    "overlapping the input": (lambda: _memory[:3], lambda: _memory[1:]),
    "requiring grad": (lambda: torch.ones(3), lambda: torch.zeros(3, requires_grad=True)),
    "of an input that requires grad": (
        lambda: torch.ones(3, requires_grad=True),
        lambda: torch.zeros(3),
    ),
    "expanding out of a view": (lambda: torch.ones(3, 3), lambda: torch.zeros(3, 1).expand(3, 2)),
}


def _bytes(tensor: Tensor) -> Any:
    if tensor.is_meta:
        return None
    return bytes(tensor.detach().untyped_storage()), tensor.shape, tensor.stride(), tensor._version


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("kind", OUT_ERRORS)
def test_out_that_does_not_fit(kind: str) -> None:
    make_input, make_out = OUT_ERRORS[kind]
    expected = raised(torch.sigmoid, make_input(), out=make_out())
    input, out = make_input(), make_out()
    before = _bytes(out)
    error = raised(fused_sigmoid.sigmoid, input, out=out)
    assert type(error) is type(expected)
    assert str(error).split("\n")[0] == str(expected).split("\n")[0]
    assert _bytes(out) == before


def test_out_requiring_grad_is_written_without_grad_mode() -> None:
    out = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        assert fused_sigmoid.sigmoid(torch.zeros(2), out=out) is out
    assert out.tolist() == [0.5, 0.5]


def test_out_that_is_no_tensor() -> None:
    for out in (1.0, [0.0], numpy.zeros(2)):
        expected = raised(torch.sigmoid, torch.zeros(2), out=out)
        error = raised(fused_sigmoid.sigmoid, torch.zeros(2), out=out)
        assert type(error) is type(expected) is TypeError
        assert "'out'" in str(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_resizing_a_full_out_warns(dtype: torch.dtype) -> None:
    input = torch.zeros(3, dtype=dtype)
    for function in (torch.sigmoid, fused_sigmoid.sigmoid):
        out = torch.zeros(2)
        with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
            function(input, out=out)
        assert out.tolist() == [0.5] * 3
        empty = torch.zeros(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(input, out=empty)
        assert empty.tolist() == [0.5] * 3


# In place


def _leaf() -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0], requires_grad=True)


def _inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.tensor([1.0, 2.0])


def _one_of_several_views() -> Tensor:
    return (_leaf() * 1).unbind()[0]


def _view_without_grad() -> Tensor:
    leaf = _leaf()
    with torch.no_grad():
        return leaf[:2]


IN_PLACE_ERRORS: dict[str, Callable[[], Tensor]] = {
    "leaf": _leaf,
    "view of a leaf": lambda: _leaf()[1:],
    "row of a leaf": lambda: _leaf().view(3, 1)[0],
    "one of several views": _one_of_several_views,
    "detached expanded": lambda: torch.ones(1).expand(3),
    "expanded": lambda: (torch.ones(1, requires_grad=True) * 1).expand(3),
    "integers": lambda: torch.tensor([1, 2]),
    "bool": lambda: torch.tensor([True]),
    "inference tensor": _inference_tensor,
    "view made without grad": _view_without_grad,
}


@pytest.mark.parametrize("kind", IN_PLACE_ERRORS)
def test_in_place(kind: str) -> None:
    make = IN_PLACE_ERRORS[kind]
    expected = raised(torch.sigmoid_, make())
    input = make()
    before = bytes(input.detach().untyped_storage())
    error = raised(fused_sigmoid.sigmoid_, input)
    assert type(error) is type(expected)
    assert str(error).split("\n")[0][:60] == str(expected).split("\n")[0][:60]
    assert bytes(input.detach().untyped_storage()) == before


def test_inference_tensor_inside_inference_mode() -> None:
    with torch.inference_mode():
        input = torch.zeros(2)
        fused_sigmoid.sigmoid_(input)
        fused_sigmoid.sigmoid(torch.zeros(2), out=input)
    assert input.tolist() == [0.5, 0.5]


def test_inference_out_outside_inference_mode() -> None:
    out = _inference_tensor()
    expected = raised(torch.sigmoid, torch.zeros(2), out=_inference_tensor())
    error = raised(fused_sigmoid.sigmoid, torch.zeros(2), out=out)
    assert type(error) is type(expected) is RuntimeError
    assert "inference tensor" in str(error)
    assert out.tolist() == [1.0, 2.0]


def test_what_is_saved_may_not_be_overwritten() -> None:
    """Instead of a wrong gradient."""
    y = fused_sigmoid.sigmoid(torch.ones(3, requires_grad=True), saved="output")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    source = torch.ones(3, requires_grad=True) * 1
    y = fused_sigmoid.sigmoid(source, saved="input")
    source.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:fused_sigmoid. the input of a sigmoid was changed")
@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_input_multiplied_by_its_sigmoid(saved: str, dtype: torch.dtype) -> None:
    """SiLU in place, as models write it. torch's sigmoid does not keep what is changed."""
    x = torch.tensor([-3.0, 1.0], dtype=dtype, requires_grad=True)
    product = x * 1
    product.mul_(fused_sigmoid.sigmoid(product, saved=saved))
    if saved != "input":
        (gradient,) = torch.autograd.grad(product.sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(silu(x).sum(), x)[0])
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        product.sum().backward()
    assert 'fused_sigmoid keeps under saved="input"' in str(caught.value)
    assert 'saved="auto"' in str(caught.value)


def test_other_errors_of_the_backward_pass_are_torchs() -> None:
    y = fused_sigmoid.sigmoid(torch.ones(2, requires_grad=True), saved="input").sum()
    y.backward()
    assert "sigmoid" not in str(raised(y.backward))


def test_second_backward_through_a_freed_graph() -> None:
    for function in (fused_sigmoid.sigmoid, torch.sigmoid):
        y = function(torch.ones(2, requires_grad=True)).sum()
        y.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward()


# The extension


def test_release_is_what_the_interface_depends_on() -> None:
    assert _extension.release("2.13.0+cpu") == "2.13"
    assert _extension.release("2.13.1") == "2.13"
    assert _extension.release("2.14.0a0+gitabc") == "2.14"


def test_explanation_of_an_extension_that_is_not_built(tmp_path: Path) -> None:
    folder = tmp_path / "fused_sigmoid"
    folder.mkdir()
    text = _extension.explanation(folder, "2.99.0")
    assert "is not built." in text
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"torch 2.99 and Python {python}" in text
    assert "-m pip install --no-build-isolation -e <folder of the source>" in text
    (tmp_path / "setup.py").touch()
    assert text.replace("<folder of the source>", str(tmp_path)) == _extension.explanation(
        folder, "2.99.0"
    )


@pytest.mark.parametrize(
    "file", ["_C_torch_2_98.cpython-311-x86_64-linux-gnu.so", "_C_torch_2_99.cpython-36m-x.so"]
)
def test_explanation_of_an_extension_built_for_others(tmp_path: Path, file: str) -> None:
    (tmp_path / file).touch()
    text = _extension.explanation(tmp_path, "2.99.0+cpu")
    assert f"is not built for torch 2.99 and Python 3.{sys.version_info[1]}; built: {file}" in text
    assert f"{sys.executable} -m pip install --no-build-isolation" in text


def test_load_of_a_missing_extension(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"is not built.*pip install --no-build-isolation"):
        _extension.load(tmp_path, "2.99.0")


def python(program: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)} | variables
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )


@pytest.mark.parametrize("other", [None, "_C_torch_2_99.cpython-311-x86_64-linux-gnu.so"])
def test_import_without_the_extension(tmp_path: Path, other: str | None) -> None:
    copy = tmp_path / "fused_sigmoid"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if other is not None:
        (copy / other).write_bytes(b"loading this would fail")
    process = python("import fused_sigmoid", tmp_path)
    message = process.stderr
    assert process.returncode == 1
    assert "ImportError: the C++ extension of fused_sigmoid is not built" in message
    assert "-m pip install --no-build-isolation -e" in message
    if other is not None:
        assert f"built: {other}" in message
        release = _extension.release(torch.__version__)
        assert f"is not built for torch {release} and Python" in message


@pytest.mark.parametrize("other", [None, "_C_torch_2_99.cpython-311-x86_64-linux-gnu.so"])
def test_import_in_a_checkout_that_hides_what_is_installed(
    tmp_path: Path, other: str | None
) -> None:
    """`pip install .` and then a command in the same folder."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    sources, installed = checkout / "fused_sigmoid", site / "fused_sigmoid"
    shutil.copytree(PACKAGE, sources, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(PACKAGE, installed, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "setup.py").touch()
    if other is not None:
        (sources / other).write_bytes(b"loading this would fail")
    command = [sys.executable, "-m", "fused_sigmoid", "info"]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=checkout, check=False
        )

    process = run(*command)
    assert process.returncode == 1
    assert "is not built" not in process.stderr
    assert (
        f"ImportError: the C++ extension of fused_sigmoid is not in {sources}, the sources that "
        f"hide the installed package in {installed}. Run Python in another folder"
    ) in process.stderr
    assert f"-m pip install --no-build-isolation -e {checkout}" in process.stderr
    if sys.version_info >= (3, 11):  # the remedy that the message names
        assert "python -P leaves out the current one" in process.stderr
        assert run(command[0], "-P", *command[1:]).returncode == 0


def test_an_extension_that_does_not_load_hides_nothing(tmp_path: Path) -> None:
    copy = tmp_path / "fused_sigmoid"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (copy / Path(extension.__file__).name).write_bytes(b"not a library")
    message = python("import fused_sigmoid", tmp_path).stderr
    assert "ImportError: the C++ extension of fused_sigmoid is not built" in message
    assert "file too short" in message


def test_unknown_instruction_set() -> None:
    process = python("import fused_sigmoid", PACKAGE.parent, FUSED_SIGMOID_CPU="nonsense")
    assert process.returncode == 1
    accepted = ", ".join(repr(name) for name in extension.instruction_sets())
    assert f"FUSED_SIGMOID_CPU is 'nonsense'; accepted on this machine: {accepted}" in (
        process.stderr
    )
    with pytest.raises(ValueError, match=f"is 'nonsense'; accepted on this machine: {accepted}"):
        extension.select_instruction_set("nonsense")


@pytest.mark.parametrize("name", ["", *extension.instruction_sets()])
def test_instruction_set_of_the_environment(name: str) -> None:
    program = """
import torch, fused_sigmoid
from fused_sigmoid._extension import extension
value, derivative = fused_sigmoid.sigmoid_with_derivative(torch.tensor([20.0, -20.0, 0.0]))
print(extension.instruction_set())
print(*derivative.tolist())
"""
    process = python(program, PACKAGE.parent, FUSED_SIGMOID_CPU=name)
    assert process.stderr == ""
    used, derivatives = process.stdout.splitlines()
    assert used == (name or extension.instruction_sets()[0])
    points = numpy.array([20, -20, 0], numpy.longdouble)
    numpy.testing.assert_allclose(
        [float(derivative) for derivative in derivatives.split()],
        oracle.derivative(points).astype(float),
        1e-6,
    )
