"""Nothing that comes in is ever run, and nothing is written but where it was asked: what the
package's sources may call, and where from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fused_sigmoid
from tools.dependencies import UNKNOWN, canonical

PACKAGE = Path(fused_sigmoid.__file__).parent
ROOT = PACKAGE.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# What turns data into code, starts another program or reaches the network.
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("subprocess", "pty", "multiprocessing", "socket", "ssl", "http", "urllib", "requests"),
    *("runpy", "code", "codeop", "ctypes", "cffi", "tempfile"),
}
FORBIDDEN_BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
FORBIDDEN_ATTRIBUTES = {
    *("popen", "spawnl", "spawnv", "execv", "execve", "execvp", "fork", "posix_spawn"),
    *("load_inline", "load_library", "cpp_extension", "hub", "loads", "mkstemp", "rmtree", "chmod"),
    *("os.system", "torch.load", "np.load", "numpy.load"),  # the last three may unpickle
}
WRITING = {"write_text", "write_bytes", "open", "save", "mkdir", "touch", "unlink", "exec_module"}
# Who may do what of that.
ALLOWED = {
    # The built extension in the package's own folder, which no path of a search leads to.
    ("_extension.py", "exec_module"),
    # `check --json FILE`, which the user names.
    *(("__main__.py", name) for name in ("write_text", "open", "unlink", "mkdir")),
    # The null device, in place of a pipe that was closed.
    ("_terminal.py", "open"),
}


def _place(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _uses(source: str) -> Iterator[tuple[str, str]]:
    """Every name of interest in a source: ("module", "pickle"), ("call", "eval") and the like."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (("module", part) for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (("module", part) for part in (node.module or "").split("."))
            yield from (("module", alias.name) for alias in node.names)
        elif isinstance(node, ast.Name):
            yield "builtin", node.id
        elif isinstance(node, ast.Attribute):
            yield "attribute", node.attr
            if isinstance(node.value, ast.Name):
                yield "attribute", f"{node.value.id}.{node.attr}"


def _forbidden(source: str) -> set[str]:
    return {
        f"{kind} {name}"
        for kind, name in _uses(source)
        if (kind == "module" and name in FORBIDDEN_MODULES)
        or (kind == "builtin" and name in FORBIDDEN_BUILTINS)
        or (kind == "attribute" and name in FORBIDDEN_ATTRIBUTES)
    }


def _writes(path: Path) -> set[tuple[str, str]]:
    found = {name for kind, name in _uses(path.read_text()) if kind != "module"}
    return {(_place(path), name) for name in found & WRITING}


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_nothing_is_unpickled_evaluated_or_started(path: Path) -> None:
    assert _forbidden(path.read_text()) == set()


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_files_are_written_only_where_asked(path: Path) -> None:
    assert _writes(path) <= ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import os.path, subprocess"),
        *("eval(x)", "f = exec", "__import__('os')", "os.system(x)", "import urllib.request"),
        *("torch.load(file)", "np.load(file)", "torch.hub.load(x)", "torch.ops.load_library(x)"),
        "def f():\n    from multiprocessing import shared_memory",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert _forbidden(source)


def test_the_extension_starts_and_loads_nothing() -> None:
    calls = re.compile(
        r"\b(system|popen|execv\w*|posix_spawn\w*|fork|dlopen|fopen|ofstream|open)\b"
    )
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp")]
    assert sources
    for path in sources:
        code = re.sub(r"//.*", "", path.read_text())
        # The CUDA driver, by its fixed name, and only where it is loaded already.
        code = code.replace('dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD)', "")
        assert not calls.search(code), path
    assert calls.search('std::ofstream file("x");')


def test_only_known_variables_of_the_environment_are_read() -> None:
    """Each is documented, and none names a file or a program."""
    known = {f"FUSED_SIGMOID_{name}" for name in ("CPU", "HUGEPAGES", "KEEPFREED", "LAUNCH")}
    found = set()
    for path in CSRC.rglob("*.cpp"):
        text = path.read_text()
        if "getenv" in text:
            found |= set(re.findall(r'"([A-Z_]{4,})"', text))
    assert found == known
    for path in SOURCES:
        names = {name for kind, name in _uses(path.read_text()) if kind == "attribute"}
        if names & {"environ", "getenv", "putenv"}:
            # Whether Python was told how to write text.
            assert _place(path) == "_terminal.py"
            assert not names & {"getenv", "putenv", "environ.get", "environ.copy"}
            of_python = {"PYTHONIOENCODING", "PYTHONUTF8"}
            assert set(re.findall(r'"(\w+)" in os.environ', path.read_text())) == of_python
            assert path.read_text().count("environ") == len(of_python)


REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[.*\])?\s*(==\s*[\w.]+)?")


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


def test_every_dependency_is_locked_with_a_version_and_a_licence() -> None:
    locked = _locked()
    project = (ROOT / "pyproject.toml").read_text()
    wanted = (ROOT / "requirements-dev.txt").read_text().splitlines()
    wanted += re.findall(r'"([\w.-]+(?:[=><].*?)?)"', project.split("[project.optional")[1])[:40]
    found = 0
    for line in wanted:
        requirement = REQUIREMENT.match(line)
        if requirement is None or canonical(requirement[1]) not in locked:
            assert line.startswith("#") or not re.search(r"[<>=]", line), line
            continue
        found += 1
        if requirement[2]:
            pinned = requirement[2].removeprefix("==")
            assert locked[canonical(requirement[1])].split()[0] == pinned, line
    assert found > 15
    for name, rest in locked.items():
        version, licence = rest.split("  # ")
        assert re.fullmatch(r"[\w.]+", version), name
        assert licence not in ("", UNKNOWN, "UNKNOWN"), name
