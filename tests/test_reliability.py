"""The long checks do what they say: their verdicts can be bad, short runs of them pass, and what is
recorded of them are full runs."""

from __future__ import annotations

import copy
import json
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from tests import fuzz_programs
from tests.native import run

pytest.importorskip("pandas")

from bench import results
from tools import defects, load

FIGURES = {
    name: section["figures"]
    for name, section in json.loads(defects.RECORD.read_text(encoding="utf-8")).items()
}
DEFECTS = defects.planned()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_has_its_place(defect: defects.Defect) -> None:
    assert (defects.ROOT / defect.file).read_text(encoding="utf-8").count(defect.old) == 1
    assert defect.old != defect.new


def test_the_recorded_runs_are_full() -> None:
    assert FIGURES["fuzz"]["kernel_executions"] >= 10**7
    assert set(FIGURES["sanitize"]) == set(run.SANITIZE)
    assert all(found["kernel_executions"] >= 10**4 for found in FIGURES["sanitize"].values())
    assert set(FIGURES["arm"]) == set(run.ARM)
    for name, found in FIGURES["programs"].items():
        assert found["failures"] == 0
        assert name in fuzz_programs.COMPILED or found["programs"] >= 10**4
    long = FIGURES["load"]
    assert (long["threads"]["threads"], long["threads"]["wrong"]) == (16, 0)
    assert long["threads"]["seconds"] >= 600
    assert long["small_calls"]["calls"] >= 10**6
    assert long["large_steps"]["calls"] >= 10**3
    assert all(long[name]["steps"] >= 10**4 for name in load.CRITERIA)
    assert load.failures(long) == []
    planted = [each["defect"] for each in FIGURES["defects"]["planted"]]
    assert planted == [defect.name for defect in DEFECTS]


@pytest.mark.parametrize(
    ("section", "key", "bad"),
    [
        ("threads", "wrong", 1),
        ("threads", "calls", 0),
        ("small_calls", "resident_bytes_after", 10**10),
        ("large_steps", "resident_bytes_after", 10**10),
        ("training", "largest_relative_difference", 0.1),
        ("training", "largest_relative_difference", float("nan")),
        ("training", "last_loss", 10.0),
        ("training_before_bce", "largest_relative_difference", 0.1),
    ],
)
def test_load_has_bad_verdicts(section: str, key: str, bad: float) -> None:
    found = copy.deepcopy(FIGURES["load"])
    found[section][key] = bad
    assert len(load.failures(found)) == 1


def test_short_loads() -> None:
    threads = load.threads(count=4, seconds=0.5)
    assert threads["calls"] > 0
    assert threads["wrong"] == 0
    for criterion in load.CRITERIA.values():
        curve = load.training(criterion, steps=30)
        assert curve["largest_relative_difference"] < load.ALLOWED_DIFFERENCE
    for steps in (load.SMALL_CALLS, [load.large_step]):
        found = load.memory(calls=60, elements=8, warm_up=12, steps=steps)
        assert found["resident_bytes_before"] > 0


def test_threads_count_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "sigmoid_", lambda input: input.zero_())
    # Each way is the first of some thread, and each thread calls once at least.
    assert load.threads(count=len(load.WAYS), seconds=0)["wrong"] > 0


def test_memory_sees_what_is_kept() -> None:
    kept = []

    def step(input: Tensor) -> None:
        # Mapped afresh: malloc may hand out pages that were freed before, and are resident already.
        kept.append(mmap.mmap(-1, 4 * load.ALLOWED_GROWTH))
        kept[-1].write(bytes([1]) * len(kept[-1]))

    found = load.memory(calls=2, elements=8, warm_up=1, steps=[step])
    grown = found["resident_bytes_after"] - found["resident_bytes_before"]
    assert grown > load.ALLOWED_GROWTH


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--one-in 0", "--one-in"),
        ("--one-in -1", "--one-in"),
        ("--one-in 8 --write", "--write"),
        ("--only threads --write", "--write"),
        ("--only of-nobody", "--only"),
    ],
)
def test_checks_that_would_run_nothing_or_record_a_part_are_refused(
    words: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "sanitize", pytest.fail)
    monkeypatch.setattr("sys.argv", ["run", "sanitize", *words.split()])
    with pytest.raises(SystemExit, match=r"^2$"):
        run.main()
    assert f"argument {named}: " in capsys.readouterr().err


def test_fuzz_without_clang_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FUZZ", run.FUZZ._replace(compiler="a-compiler-that-is-missing"))
    with pytest.raises(SystemExit, match=r"is missing: libFuzzer comes with clang \(apt-get"):
        run.fuzz(run.ROOT / "csrc", 1)


def test_arm_without_its_tools_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ARM_GXX", "a-compiler-that-is-missing")
    monkeypatch.setattr(run, "ARM_EMULATOR", "an-emulator-that-is-missing -L /usr")
    expected = "a-compiler-that-is-missing and an-emulator-that-is-missing missing: apt-get install"
    with pytest.raises(SystemExit, match=f"^{expected} g.*ARM_CXX and ARM_EMULATOR name others$"):
        run.arm(run.ROOT / "csrc", list(run.ARM))


def test_other_bits_on_arm_are_named() -> None:
    here = run.digests(
        [
            {"digests": {"avx2": {"float32, value": "1"}, "default": {"float32, value": "1"}}},
            {"digests": {"avx2": {"float16, value": "2"}, "default": {"float16, value": "2"}}},
        ],
        "x86_64",
    )
    same = {"float32, value": "1", "float16, value": "2"}
    assert here == {"avx2 on x86_64": same, "default on x86_64": same}
    assert run.differences(here | {"neon on aarch64": same}) == []
    assert run.differences(here | {"neon on aarch64": same | {"float16, value": "3"}}) == [
        "neon on aarch64, float16, value: other bits than avx2 on x86_64"
    ]
    assert run.differences(here | {"neon on aarch64": {"float32, value": "1"}}) == [
        "neon on aarch64, float16, value: other bits than avx2 on x86_64"
    ]


def test_the_kernels_are_tried_with_the_flags_they_are_shipped_with() -> None:
    for machine in ("x86_64", "aarch64"):
        flags, sets = run.shipped(machine)
        assert "-ffp-contract=off" in flags
        assert sets
        assert all("-mfma" in own for name, own in sets.items() if name != "neon")


def test_a_record_of_defects_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "folder" / "figures.json"
    results.record_section(record, "load", {"count": 1})
    monkeypatch.setattr(defects, "RECORD", record)
    defects.write({defect.name: f"of {defect.name}" for defect in DEFECTS})
    found = json.loads(record.read_text(encoding="utf-8"))
    assert list(found) == ["defects", "load"]
    assert found["load"]["figures"] == {"count": 1}
    planted = found["defects"]["figures"]["planted"]
    assert [(each["defect"], each["message"]) for each in planted] == [
        (defect.name, f"of {defect.name}") for defect in DEFECTS
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--only no-such-defect", "argument --only: no defect's name holds 'no-such-defect'"),
        # What was not planted this time would be recorded as of this commit.
        ("--only loss --write", "argument --write: not allowed with argument --only"),
        ("--onyl loss", "unrecognized arguments: --onyl loss"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(
    arguments: str,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["tools.defects", *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        defects.main()
    assert capsys.readouterr().err == f"python -m tools.defects: error: {error}\n"


COMMA = defects.Defect(
    name="a comma too many",
    file="tools/defects.json",
    old='[\n  {"name"',
    new='[,\n  {"name"',
    check="json.tool tools/defects.json",
    message="Expecting value: line 1 column 2",
)


def test_each_defect_is_planted_alone(capfd: pytest.CaptureFixture[str]) -> None:
    none = replace(COMMA, name="none", new=COMMA.old)
    another = replace(COMMA, name="one of another kind", message="AddressSanitizer")
    found = defects.in_turn([COMMA, none, another])
    assert found == {COMMA.name: COMMA.message, "none": None, "one of another kind": None}
    assert "one of another kind: failed for another reason" in capfd.readouterr().out


def test_a_defect_whose_place_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / COMMA.file).write_text("[]")
    with pytest.raises(SystemExit, match=r"a comma too many: tools/defects\.json no longer holds"):
        defects.plant(COMMA, tmp_path)
