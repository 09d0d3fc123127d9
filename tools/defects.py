"""Plants known defects, each in a throw-away copy, and sees which check catches it; ends with an
error if one goes unseen. Called by `make defects`.

    python -m tests.defects [--record FILE.json]

Depends on tests/native/run.py and the suite for the checks, on bench.reliability for the file.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800


class Defect(NamedTuple):
    """``old`` becomes ``new`` in the file; the check has to fail and say what matches."""

    name: str
    file: str
    old: str
    new: str
    check: tuple[str, ...]
    message: str
    builds: bool = False  # whether the check needs the extension built anew

    @property
    def command(self) -> str:
        return " ".join(f"'{word}'" if " " in word else word for word in self.check)


def _sanitizer(name: str) -> tuple[str, ...]:
    return ("tests.native.run", "sanitize", "--only", name)


MEMORY = _sanitizer("address and undefined behaviour")
SHIPPED = _sanitizer("guard pages, as shipped")
THREADS = _sanitizer("threads")
LOOPS = "csrc/cpu/loops.h"
STRIDED = "csrc/cpu/strided.cpp"
ELEMENTWISE = "csrc/elementwise.cpp"
TAIL = "const size_t bytes = static_cast<size_t>(count - offset) * sizeof(T);"
FAILED_TEST = r"FAILED (tests/\S+)"
PROGRAMS = ("pytest", "-q", "-x", "tests/test_fuzz_programs.py", "-k")
IN_PLACE = (*PROGRAMS, "programs_that_change")
CHECKPOINTS = (*PROGRAMS, "programs_with_checkpoints")
COMPILED = (*PROGRAMS, "compiled_programs")
NESTED = ("pytest", "-q", "-x", "tests/test_nested_transforms.py")
COMPANY = ("pytest", "-q", "-x", "tests/test_company.py")
BEFORE_BCE = ("pytest", "-q", "-x", "tests/test_before_bce.py")
CONSTANTS = "csrc/numerics/coefficients.h"
GENERATED = ("pytest", "-q", "-x", "tests/test_coefficients.py")
LOSS = "csrc/losses/binary_cross_entropy.h"
LOSS_LOOPS = "csrc/cpu/loss_loops.h"
LOSS_OVER_TENSORS = "csrc/binary_cross_entropy.cpp"
OF_LOSS = ("pytest", "-q", "-x", "tests/test_binary_cross_entropy.py", "-k")

DEFECTS = (
    Defect(
        *("a vector's tail is one element too long", LOOPS),
        *(TAIL, TAIL.replace("count - offset", "count - offset + 1")),
        *(MEMORY, r"AddressSanitizer: [\w-]+"),
    ),
    Defect(
        *("a vector's tail is one element too short", LOOPS),
        *(TAIL, TAIL.replace("count - offset", "count - offset - 1")),
        *(MEMORY, r"FAILED: .*"),
    ),
    Defect(
        *("the last whole vector runs past the end", LOOPS),
        *("for (; offset + V::size <= count;", "for (; offset + V::size <= count + 1;"),
        *(SHIPPED, r"FAILED: .*|in this call: .*"),
    ),
    Defect(
        *("a strided input is taken for a dense one", STRIDED),
        *("(strides[i] != item && columns > 1)", "(i < outputs && strides[i] != item)"),
        *(MEMORY, r"AddressSanitizer: [\w-]+|FAILED: .*"),
    ),
    Defect(
        *("gathered rows are one too many at the end", STRIDED),
        *("count - row : most_rows;", "count - row + 1 : most_rows;"),
        *(SHIPPED, r"FAILED: .*|in this call: .*"),
    ),
    Defect(
        *("the last streamed line runs past the end", "csrc/cpu/streaming.cpp"),
        *("bytes - before - behind;", "bytes - before;"),
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("loads that need alignment", "csrc/cpu/vector.h"),
        *("std::memcpy(&to, from, sizeof(to));", "to = *static_cast<const To*>(from);"),
        *(SHIPPED, r"in this call: .*?elements"),
    ),
    Defect(
        *("bfloat16 rounds ties away, in one instruction set", "csrc/cpu/vector_avx2.h"),
        *("0x7fff + ((Bits(a) >> 16) & 1));", "Bits() + 0x8000);"),
        *(MEMORY, r"FAILED: .*"),
    ),
    Defect(
        *("a racy scratch buffer for strided operands", STRIDED),
        *("alignas(64) char buffers", "alignas(64) static char buffers"),
        *(THREADS, r"ThreadSanitizer: data race"),
    ),
    Defect(
        *("a racy scratch buffer for the tail", LOOPS),
        "  T buffer[inputs + outputs][V::size] = {};",
        "  static T buffer[inputs + outputs][V::size] = {};",
        *(THREADS, r"ThreadSanitizer: data race"),
    ),
    Defect(
        *("no device guard around a launch", "fused_sigmoid/triton/elementwise.py"),
        *("torch.cuda.device(device) if elsewhere else contextlib.nullcontext()",),
        "contextlib.nullcontext()",
        *(("pytest", "-q", "tests/test_triton_interpreter.py", "-k", "launches"), FAILED_TEST),
    ),
    Defect(
        *("every tensor is taken for a contiguous one", ELEMENTWISE),
        *("is_dense = like.is_non_overlapping_and_dense(), has_one", "is_dense = true, has_one"),
        *(("pytest", "-q", "-x", "tests/test_properties.py"), FAILED_TEST, True),
    ),
    Defect(
        *("before the loss, 1 - y of a half is not rounded", "csrc/functions/sigmoid.h"),
        *("rounded<C>(complement) * y;", "complement * y;"),
        *(BEFORE_BCE, FAILED_TEST, True),
    ),
    Defect(
        *("before the loss, the floor is float64's 1e-12", "csrc/functions/sigmoid.h"),
        *("constexpr float floor_of_bce = 1e-12f;", "constexpr double floor_of_bce = 1e-12;"),
        *((*BEFORE_BCE, "-k", "division_is_undone"), FAILED_TEST, True),
    ),
    Defect(
        *(
            "before the loss, a GPU forgets the product's rounding",
            "fused_sigmoid/triton/sigmoid.py",
        ),
        *("(complement * y).to(dtype).to(y.dtype)", "complement * y"),
        *(
            ("pytest", "-q", "tests/test_triton_interpreter.py", "-k", "before_the_loss"),
            FAILED_TEST,
        ),
    ),
    Defect(
        *("a kept tensor that was changed is taken for an unchanged one", "csrc/kept.h"),
        *("if (!*this || counter_.current_version() != version_)", "if (!*this)"),
        *(IN_PLACE, FAILED_TEST, True),
    ),
    Defect(
        *("another tensor is kept under a mode", "csrc/autograd.cpp"),
        *("!input.is_cpu() || !is_ordinary(input)", "!input.is_cpu() || !is_unobserved(input)"),
        *(CHECKPOINTS, FAILED_TEST, True),
    ),
    Defect(
        *("compiled, the input is kept and not a copy", "csrc/autograd.cpp"),
        *("? Kept(input.clone(), /*is_output=*/false)", "? Kept(input, /*is_output=*/false)"),
        *(COMPILED, FAILED_TEST, True),
    ),
    Defect(
        *("a node calls its operators beneath the active transforms", "csrc/autograd.cpp"),
        "  if (is_transformed()) {\n    return c10::impl::tls_is_dispatch_key_included(",
        "  if (is_transformed()) {\n    return false && c10::impl::tls_is_dispatch_key_included(",
        *(NESTED, FAILED_TEST, True),
    ),
    Defect(
        *("a kept derivative keeps its tangent beside the output's", "csrc/autograd.cpp"),
        *("? from.derivative._fw_primal(/*level=*/0)", "? from.derivative"),
        *(NESTED, FAILED_TEST, True),
    ),
    Defect(
        *("no consumer of an output is looked for", "csrc/consumers.cpp"),
        *("return found == pass->consumers.end() ? Consumer() : found->second;", "return {};"),
        *(COMPANY, FAILED_TEST, True),
    ),
    Defect(
        *("every consumer of an output is taken for nn.BCELoss", "csrc/autograd.cpp"),
        "  if (uses.is_complement_divided) return {Factor::product};",
        "  return {Factor::before_bce};",
        *(COMPANY, FAILED_TEST, True),
    ),
    Defect(
        *("torch's sigmoid stands in for an output that was not kept", "csrc/autograd.cpp"),
        "value = compute<F>(input, /*with_derivative=*/false, /*in_place=*/false).value;",
        "value = at::sigmoid(input);",
        *((*COMPANY, "-k", "input"), FAILED_TEST, True),
    ),
    Defect(
        *("the last place of a polynomial's number", CONSTANTS),
        *("0x1.801028p+0f", "0x1.80102ap+0f", GENERATED, FAILED_TEST),
    ),
    Defect(
        *("the last place of an entry of the table of powers", CONSTANTS),
        *("0x3c1d008a6d0e25e4", "0x3c1d008a6d0e25e5", GENERATED, FAILED_TEST),
    ),
    Defect(
        *("two entries of the table of powers in the other order", CONSTANTS),
        *("0x2f0b3a3e,\n      0x2f07d424,", "0x2f07d424,\n      0x2f0b3a3e,"),
        *(GENERATED, FAILED_TEST),
    ),
    Defect(
        *("gradients of bfloat16 are rounded half up", LOOPS),
        "work == Work::value_and_derivative)",
        "work == Work::value_and_derivative || work == Work::backward)",
        *(("pytest", "-q", "-x", "tests/test_functions.py"), FAILED_TEST, True),
    ),
    Defect(
        *("of the loss, the gradient's second term is added", LOSS),
        *("return fnma(positive, if_negative", "return fma(positive, if_negative"),
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, exp(-|x|) loses what 1 + exp(-|x|) does not hold",),
        *("csrc/numerics/logistic_loss.h", "const V e = scaled * V(C::inverse_scale);"),
        "const V e = (scaled * V(C::inverse_scale) + V(1)) - V(1);",
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, a negative logit costs nothing more", LOSS),
        *("linear(if_negative(x, t, u), abs(x)", "linear(if_negative(x, V(0), u), abs(x)"),
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, what is shorter than a vector is left out", LOSS_LOOPS),
        *("if (count == 0) return total.sum();", "if (count < Four::size) return total.sum();"),
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, the gradient is not multiplied", LOSS_LOOPS),
        *("(result.gradient * scale).store", "result.gradient.store"),
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, weights and those of the positive part change places", LOSS_LOOPS),
        "V::template load_beside<T>(at.weights),\n"
        "                                       V::template load_beside<T>(at.pos_weights)",
        "V::template load_beside<T>(at.pos_weights), V::template load_beside<T>(at.weights)",
        *(SHIPPED, r"FAILED: .*"),
    ),
    Defect(
        *("of the loss, a sum has as many parts as there are threads", LOSS_OVER_TENSORS),
        "sums[static_cast<size_t>(block)] = call.run(",
        "sums[static_cast<size_t>(first)] += call.run(",
        *((*OF_LOSS, "does_not_depend_on_threads"), FAILED_TEST, True),
    ),
    Defect(
        *("of the loss, the last block is left out", LOSS_OVER_TENSORS),
        *("(count + block_size - 1) / block_size;", "count / block_size;"),
        *((*OF_LOSS, "sizes"), FAILED_TEST, True),
    ),
    Defect(
        *("of the loss, a mean's gradient is not divided by n", LOSS_OVER_TENSORS),
        *("? factor / static_cast<double>(count) : factor;", "? factor : factor;"),
        *((*OF_LOSS, "nearest_gradients"), FAILED_TEST, True),
    ),
    Defect(
        *("a reference that a call never gives back", "csrc/python.cpp"),
        "  return THPVariable_Wrap("
        "without_gil([&] { return Autograd<F>::value(*input, saved); }));",
        "  return Py_NewRef(THPVariable_Wrap("
        "without_gil([&] { return Autograd<F>::value(*input, saved); })));",
        ("tests.load", "--seconds", "1", "--small-calls", "50000", "--large-steps", "5"),
        *(r"small_calls: resident memory grew by [\d,]+ bytes", True),
    ),
)


def _copy(folder: Path) -> None:
    """The checkout's files, and its built extension."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split("\0") if name]
    names += [str(path.relative_to(ROOT)) for path in ROOT.glob("fused_sigmoid/*.so")]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def caught(defect: Defect, folder: Path) -> str | None:
    """What the check says of the defect, or None if it passes."""
    _copy(folder)
    file = folder / defect.file
    text = file.read_text(encoding="utf-8")
    if text.count(defect.old) != 1:
        raise SystemExit(f"{defect.name}: {defect.file} no longer holds {defect.old!r} once")
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    if defect.builds:
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
    process = subprocess.run(
        [sys.executable, "-m", *defect.check],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = re.search(defect.message, process.stdout)
    if process.returncode and said is None:
        print(process.stdout[-3000:])
        raise SystemExit(f"{defect.name}: the check failed for another reason")
    return said[0] if process.returncode and said else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Do the checks see what they are for?")
    add = parser.add_argument
    add("--record", type=Path, metavar="FILE.json", help="keep what was found in this file")
    add("--only", metavar="WORDS", default="", help="the defects whose name holds these words")
    chosen = parser.parse_args()
    planted, unseen = [], []
    for defect in DEFECTS:
        if chosen.only not in defect.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            message = caught(defect, Path(folder))
        print(f"{defect.name}: {message or 'NOT SEEN'}", flush=True)
        if message is None:
            unseen.append(defect.name)
            continue
        planted.append(
            {
                "defect": defect.name,
                "file": defect.file,
                "check": defect.command,
                "message": message,
            }
        )
    if unseen:
        raise SystemExit(f"no check saw: {', '.join(unseen)}")
    if chosen.record:
        from bench import reliability

        if chosen.only:  # of the others what was found before is kept
            known = json.loads(chosen.record.read_text(encoding="utf-8"))["defects"]["figures"][
                "planted"
            ]
            new = {entry["defect"]: entry for entry in planted}
            before = {entry["defect"]: entry for entry in known} | new
            planted = [before[defect.name] for defect in DEFECTS if defect.name in before]
        reliability.record(chosen.record, "defects", {"planted": planted})


if __name__ == "__main__":
    main()
