"""When something around a call fails, the call fails as torch's own, writes all or nothing, and the
next call works: memory that runs out, a signal, a fork, the end of the interpreter, a kernel that
refuses advice, a GPU toolchain that is missing or broken, nonsense in the environment.

What breaks a process for good runs in a process of its own, with a limit of time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
import torch

import fused_sigmoid
from fused_sigmoid import _extension
from fused_sigmoid.functions import function
from fused_sigmoid.functions.sigmoid import FUNCTION

SECONDS = 120
ROOT = Path(fused_sigmoid.__file__).parent.parent

PREAMBLE = """
import atexit, os, resource, signal, sys, threading
import torch
import fused_sigmoid
from fused_sigmoid import sigmoid, sigmoid_, sigmoid_with_derivative

def right(value, x):
    # e^-x for positive x alone, in the width of torch's own float64.
    return torch.allclose(value.double(), 1 / (1 + torch.exp(-x.double())), rtol=1e-6, atol=0)
"""


def start(program: str, before: str = "", **variables: str) -> subprocess.Popen[str]:
    # No thread of OpenMP: what is tried is the call, and a thread too needs memory to start.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-c", before + PREAMBLE + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; it must have ended by itself, without a word of complaint."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    return output


# Memory


OUT_OF_MEMORY = """
count = 1 << 24  # 64 MiB of float32
x = torch.full((count,), 2.0)
leaf = x.clone().requires_grad_()
kept = sigmoid(leaf, saved="input")
written = x.clone()
tracked = leaf * 1
small = torch.full((8,), 7.0)
value, derivative = torch.zeros(2), torch.zeros(2)

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

def attempt(name, call, torchs):
    # Room for less than one more tensor; for `pair` for one of two.
    room = (80 if name == "pair" else 32) << 20
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used() + room, before[1]))
    errors = []
    for function in (call, torchs):
        try:
            function()
        except BaseException as error:
            errors.append(error)
        else:
            errors.append(None)
    resource.setrlimit(resource.RLIMIT_AS, before)
    ours, expected = errors
    assert type(ours) is type(expected) is RuntimeError, (name, ours, expected)
    assert "can't allocate memory" in str(ours), (name, ours)
    print(name)

attempt("fresh", lambda: sigmoid(x), lambda: torch.sigmoid(x))
attempt("pair", lambda: sigmoid_with_derivative(x), lambda: torch.cat([x, x]))
attempt("backward", lambda: kept.sum().backward(), lambda: torch.sigmoid(leaf))
attempt("recorded", lambda: sigmoid(leaf, saved="derivative"), lambda: torch.sigmoid(leaf))
version = tracked._version
attempt("in place", lambda: sigmoid_(tracked), lambda: torch.sigmoid(tracked))
assert tracked._version == version and (tracked == 2).all()
attempt("out", lambda: sigmoid(x, out=small), lambda: torch.sigmoid(x, out=torch.zeros(0)))
# torch's own keeps the new shape, without the memory of it.
assert small.tolist() == [7.0] * 8
attempt("converted out", lambda: sigmoid(x, out=torch.empty(0, dtype=torch.float64)),
        lambda: torch.sigmoid(x, out=torch.empty(0, dtype=torch.float64)))
half = torch.full((count,), 3.0, dtype=torch.float16)
attempt("out of another dtype", lambda: sigmoid(x, out=half), lambda: torch.sigmoid(x))
assert (half == 3).all()

def right_everywhere(value):
    # All elements of x are the same.
    return value.shape == x.shape and (value == value[0]).all() and right(value[:1], x[:1])

# And after all that:
assert right_everywhere(sigmoid(x)) and right_everywhere(sigmoid_with_derivative(x)[0])
sigmoid_(tracked)
assert right_everywhere(tracked.detach())
sigmoid(x, out=written)
assert right_everywhere(written)
kept.sum().backward()
assert right_everywhere(sigmoid(x, out=small))
"""


def test_memory_that_runs_out() -> None:
    tried = finish(start("import warnings; warnings.simplefilter('ignore')" + OUT_OF_MEMORY))
    assert tried.split("\n")[:-1] == [
        *("fresh", "pair", "backward", "recorded", "in place", "out", "converted out"),
        "out of another dtype",
    ]


# Signals, forks and the end


INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
x = torch.full((1 << 23,), 2.0, dtype=torch.float64)
out = torch.empty_like(x)
sigmoid(x, out=out)
try:
    print("ready", flush=True)
    while True:
        out.zero_()
        sigmoid(x, out=out)
except KeyboardInterrupt:
    # A call that has begun ends first: all or nothing is written.
    assert out.min() == out.max()
assert right(sigmoid(x), x)
print("right")
"""


def test_interrupt_during_a_call() -> None:
    process = start(INTERRUPTED)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == "right\n"


FORKED = """
import warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of os.fork, Python 3.12
x = torch.linspace(0, 20, 300_000)
expected = sigmoid(x)
running = True

def work():
    while running:
        assert torch.equal(sigmoid(x.clone().requires_grad_(), saved="derivative"), expected)

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
codes = []
for _ in range(25):
    child = os.fork()
    if child == 0:
        leaf = x.clone().requires_grad_()
        value = sigmoid(leaf)
        value.sum().backward()
        os._exit(0 if torch.equal(value, expected) and right(value[:9], x[:9]) else 1)
    codes.append(os.waitpid(child, 0)[1])
running = False
for thread in threads:
    thread.join()
print(codes.count(0))
"""


def test_fork_while_other_threads_compute() -> None:
    assert finish(start(FORKED)) == "25\n"


SHUTDOWN = """
leaf = torch.randn(100_000, requires_grad=True)
graphs = [sigmoid(leaf, saved=saved) for saved in ("auto", "derivative", "input", "output")]
pair = sigmoid_with_derivative(leaf)
in_place = sigmoid_(leaf * 1)
leaf.register_hook(lambda grad: sigmoid(grad))
sum(graphs).sum().backward(retain_graph=True)
model = fused_sigmoid.FusedSigmoid()
model.cycle = [model, graphs, pair]
fused_sigmoid.override().__enter__()

torch.keeps_alive = graphs, pair
atexit.register(lambda: sigmoid(leaf).sum().backward())
thread = threading.Thread(target=lambda: [sigmoid(leaf) for _ in range(300)])
thread.start()
print("end", flush=True)
"""


def test_end_of_the_interpreter_with_graphs_alive() -> None:
    """A thread included that still computes; one that is a daemon aborts the process as with
    torch.sigmoid, since Python ends such threads inside the call."""
    assert finish(start(SHUTDOWN)) == "end\n"


# What the operating system refuses


def built(program: str, folder: Path) -> str:
    """A library of C to be loaded before all others."""
    source, library = folder / "first.c", folder / "first.so"
    source.write_text(program)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    return str(library)


REFUSING = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

int madvise(void* address, size_t length, int advice) {
  (void)address; (void)length;
  if (advice == MADV_HUGEPAGE && write(1, "refused\\n", 8)) {}
  errno = EINVAL;
  return -1;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD and madvise")
def test_huge_pages_that_are_refused(tmp_path: Path) -> None:
    library = built(REFUSING, tmp_path)
    program = """
x = torch.full((1 << 22,), 2.0)
for result in (sigmoid(x), *sigmoid_with_derivative(x)[:1]):
    assert right(result, x)
    os.write(1, b"right\\n")
"""
    lines = finish(start(program, LD_PRELOAD=library)).split()
    # Both calls asked, were refused and went on.
    assert lines.count("right") == 2
    assert lines.count("refused") >= 2
    quiet = finish(start(program, LD_PRELOAD=library, FUSED_SIGMOID_HUGEPAGES="0"))
    assert quiet.split() == ["right", "right"]


# What jemalloc answers of the arena of a thread, each of which has its own here.
ARENAS = """
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread size_t limit;

static size_t set_to(const char* variable) {
  const char* text = getenv(variable);
  return text ? atol(text) : 8 << 20;
}

int mallctl(const char* name, void* value, size_t* bytes, void* changed, size_t changed_bytes) {
  unsigned arena = 3;
  size_t option = set_to("OPTION");
  if (limit == 0) limit = set_to("LIMIT");
  if (strcmp(name, "thread.arena") == 0) return memcpy(value, &arena, *bytes), 0;
  if (strcmp(name, "opt.oversize_threshold") == 0) return memcpy(value, &option, *bytes), 0;
  if (strcmp(name, "arena.3.oversize_threshold") != 0) return 2;
  if (value) memcpy(value, &limit, *bytes);
  if (changed) memcpy(&limit, changed, changed_bytes);
  return 0;
}
"""
OVERSIZE = """
import ctypes
import threading

library = ctypes.CDLL(None)

def read(name, kind):
    value, size = kind(), ctypes.c_size_t(ctypes.sizeof(kind))
    assert library.mallctl(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0
    return value.value

def say():
    print(read(f"arena.{read('thread.arena', ctypes.c_uint)}.oversize_threshold", ctypes.c_size_t))

def work():
    sigmoid(torch.zeros((1 << 18) - 1))
    say()
    sigmoid(torch.zeros(1 << 18))
    say()

for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD")
@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ({}, [8 << 20, 64 << 20]),
        ({"FUSED_SIGMOID_KEEPFREED": "0"}, [8 << 20, 8 << 20]),
        # What the user has set stays; not every arena has what the option says.
        ({"OPTION": "4000000"}, [8 << 20, 8 << 20]),
        ({"LIMIT": "4000000"}, [4000000, 4000000]),
    ],
)
def test_jemalloc_keeps_freed_memory_in_each_thread_that_has_large_outputs(
    variable: dict[str, str], expected: list[int], tmp_path: Path
) -> None:
    said = finish(start(OVERSIZE, LD_PRELOAD=built(ARENAS, tmp_path), **variable))
    assert [int(line) for line in said.split()] == 2 * expected


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("FUSED_SIGMOID_HUGEPAGES", "yes", "'0' and '1'"),
        ("FUSED_SIGMOID_KEEPFREED", "32M", "'0' and '1'"),
        ("FUSED_SIGMOID_CPU", "AVX2,default", "'default'"),
        ("FUSED_SIGMOID_LAUNCH", "Triton", "'extension' and 'triton'"),
    ],
)
def test_nonsense_in_the_environment(name: str, value: str, accepted: str) -> None:
    process = start("print('not reached')", **{name: value})
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (1, "")
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: {name} is '{value}'; accepted")
    assert accepted in last


# The extension and the GPU's toolchain


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(60)])
def test_extension_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    """A file of the right name: half copied, or of another machine."""
    built = next((ROOT / "fused_sigmoid").glob(f"*torch_{_release()}*.so"))
    (tmp_path / built.name).write_bytes(content)
    with pytest.raises(ImportError, match=r"(?s)Build it for .*-m pip install.*\(.*\)") as caught:
        _extension.load(tmp_path, torch.__version__)
    assert isinstance(caught.value.__cause__, ImportError)


def _release() -> str:
    return _extension.release(torch.__version__).replace(".", "_")


@pytest.fixture
def _fresh_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As before the first GPU tensor: nothing of Triton is imported, and no choice is made."""
    for name in list(sys.modules):
        if name.split(".")[0] == "triton" or name.startswith("fused_sigmoid.triton"):
            monkeypatch.delitem(sys.modules, name)
    function.triton_kernels.cache_clear()
    yield
    function.triton_kernels.cache_clear()


TRITONS = {
    "missing": None,
    "broken": "raise OSError('libtriton.so: undefined symbol: of_another_release')",
    "another version": "__version__ = '1.0.0'",
    "failing": "raise RuntimeError('0 active drivers')",
}


@pytest.mark.usefixtures("_fresh_kernels")
@pytest.mark.parametrize("kind", TRITONS)
def test_triton_that_cannot_be_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula in its place, one warning that says why, and right results."""
    program = TRITONS[kind]
    if program is None:
        monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    else:
        package = tmp_path / "triton"
        package.mkdir()
        (package / "__init__.py").write_text(program)
        (package / "language.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="without its GPU kernels, since Triton") as caught:
        assert function.triton_kernels() == {}
    assert len(caught) == 1
    if program is not None and "raise" in program:
        assert program.split("'")[1] in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_formula()
    for name in list(sys.modules):
        if name.split(".")[0] == "triton":
            del sys.modules[name]


def _check_formula() -> None:
    x = torch.tensor([-30.0, 0.0, 30.0])
    exact = oracle.exact(x)
    value, derivative = FUNCTION.run("value_and_derivative", x)
    gradient = FUNCTION.run("backward", torch.ones(3), x)
    assert oracle.largest_error_in_ulp(FUNCTION.run("value", x), oracle.value(exact)) < 4
    assert oracle.largest_error_in_ulp(value, oracle.value(exact)) < 4
    assert oracle.largest_error_in_ulp(derivative, oracle.derivative(exact)) < 8
    assert oracle.largest_error_in_ulp(gradient, oracle.derivative(exact)) < 8


WATCHED = """
import os, sys
import torch

def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and not str(arguments[0]).startswith("/dev/"):
            os.write(2, f"opened for writing: {arguments[0]}\\n".encode())
    if event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "os.system"):
        os.write(2, f"{event} {arguments}\\n".encode())

sys.addaudithook(watch)
"""
USED = """
x = torch.randn(100_000).abs().requires_grad_()
y = sigmoid(x)
y.sum().backward()
assert right(y.detach(), x.detach())
assert fused_sigmoid.replace_sigmoid(torch.nn.Sequential(torch.nn.Sigmoid())) == 1
import fused_sigmoid.triton.elementwise
print("right")
"""


def test_import_writes_nothing_and_needs_no_home(tmp_path: Path) -> None:
    """Neither a cache of Triton's that cannot be made nor a missing home stops the CPU."""
    file = tmp_path / "file"
    file.touch()
    below = str(file / "cache")
    output = finish(
        start(USED, WATCHED, HOME=below, TRITON_CACHE_DIR=below, PYTHONDONTWRITEBYTECODE="1")
    )
    assert output == "right\n"
