"""What every test shares: a fixed seed, the CPU instruction sets one after the other, and at the
end of the run an account of the routes that the tests really went through."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import fused_sigmoid
from fused_sigmoid._extension import extension

# A test's route is a property of its report, which pytest hands on as it was.
ROUTE = "route"
GPU = "GPU"
# These files run the GPU kernels by a route of their own, and skip where Triton is missing.
ROUTES_OF_FILES = {
    "test_triton_interpreter.py": "Triton interpreter",
    "test_triton_offline.py": "Triton compiled offline",
}


# The suite sees the same examples every time; --hypothesis-profile=fuzz, of `make fuzz`, others.
settings.register_profile(
    "suite",
    derandomize=True,
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "fuzz", settings.get_profile("suite"), derandomize=False, max_examples=10_000
)
settings.load_profile("suite")


def pytest_configure() -> None:
    """Workers that run side by side share the cores: more threads would wait for one another, up to
    four times as long as they compute. What depends on threads sets their number itself."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=extension.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once with each instruction set that this CPU has, best first."""
    before = extension.instruction_set()
    extension.select_instruction_set(request.param)
    yield request.param
    extension.select_instruction_set(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            item.user_properties.append((ROUTE, GPU))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
        if item.path.name in ROUTES_OF_FILES:
            item.user_properties.append((ROUTE, ROUTES_OF_FILES[item.path.name]))
        arguments = getattr(item, "callspec", None)
        if arguments is not None and "instruction_set" in arguments.params:
            item.user_properties.append((ROUTE, _cpu_route(arguments.params["instruction_set"])))


def _cpu_route(instruction_set: str) -> str:
    return f"CPU {instruction_set}"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    location = report.longrepr
    return str(location[2]) if isinstance(location, tuple) else str(location)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    for outcome in ("passed", "failed", "xfailed", "xpassed"):
        for report in terminalreporter.getreports(outcome):
            ran.update(route for name, route in report.user_properties if name == ROUTE)
    for report in terminalreporter.getreports("skipped"):
        reason = _skip_reason(report)
        # A file that skips as a whole has no tests to carry the property.
        file_route = ROUTES_OF_FILES.get(report.nodeid.split("::")[0].rpartition("/")[2])
        own = [route for name, route in getattr(report, "user_properties", ()) if name == ROUTE]
        skipped.update({route: reason for route in [*own, file_route] if route})

    routes = [_cpu_route(name) for name in extension.instruction_sets()]
    routes += [*ROUTES_OF_FILES.values(), GPU]
    terminalreporter.section("routes that ran")
    for route in routes:
        if ran[route]:
            device = f" on {torch.cuda.get_device_name()}" if route == GPU else ""
            outcome = f"{ran[route]} tests{device}"
        elif route in skipped:
            outcome = f"did not run: {skipped[route]}"
        elif route == GPU and not torch.cuda.is_available():
            outcome = "did not run: torch sees no CUDA device"
        else:
            outcome = "did not run: no test selected"
        terminalreporter.write_line(f"{route:<26}{outcome}")
    terminalreporter.write_line(
        f"fused_sigmoid {fused_sigmoid.__version__}, torch {torch.__version__}, triton "
        f"{_triton_version()}, Python {platform.python_version()}; without a named instruction "
        f"set: {extension.instruction_set()}"
    )


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(restored_threads: None) -> None:
    """For what is too small to gain by a second, which others may need."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def without_the_user_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts have malloc as it is by itself. Workers of the suite are told a
    terminal's width, and tables would be cut to it."""
    settings = ("COLUMNS", "MALLOC_", "GLIBC_TUNABLES", "FUSED_SIGMOID_KEEP", "FUSED_SIGMOID_HUGE")
    for name in [name for name in os.environ if name.startswith(settings)]:
        monkeypatch.delenv(name)
