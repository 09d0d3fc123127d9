"""The one renderer of results: writes every table that README.md and docs/ show, and a page and a
picture for each machine, from the committed files in bench/results. Measures nothing.

    python -m bench.pages             write what is not as the results have it
    python -m bench.pages --check     name it, and exit with 1 if there is any

A page asks for a table by a name and words, ``<!-- figures:begin speed cpu-zen3-avx2 -->``, and it
stands up to ``<!-- figures:end -->``; TABLES has the names. Depends on results, goals and report
for rows, on examples for the tables of their records, on pandas, tabulate and matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench import goals, report, results
from bench.results import FOLDER, Result, Row

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), FOLDER / "README.md")
NUMBER = re.compile(r"|[-+]?\d[\d.,e+-]*( (%|s|min|[nµm]s|[KM]i|MiB|/ [\d,]+|\[.*\]))?")
BLOCK = re.compile(r"(<!-- figures:begin (.+?) -->\n)(.*?)(<!-- figures:end -->)", re.DOTALL)

MACHINES = {
    "cpu-zen3-avx2": "AMD Zen 3, AVX2",
    "cpu-xeon-avx512": "Intel Xeon, AVX-512",
    "cuda-h100": "NVIDIA H100",
}
WORKS = {
    "forward": "σ, out= given",
    "forward-fresh": "σ, fresh output",
    "pair": "σ and σ′",
    "training": "σ forward and backward",
    "bce": "σ, BCELoss, backward",
    "backward": "backward alone",
    "loss": "loss of logits and backward",
    "loss-forward": "loss of logits alone",
    "loss-none": "losses of logits and backward",
}
KI, MI = 2**10, 2**20
# Five rows a kind of device: a call's fixed cost, activations in cache, tensors larger than one.
SUMMARY = {
    "cpu": {"training": (1, 64 * KI), "forward": (64 * KI,), "pair": (MI,), "loss": (MI,)},
    "cuda": {"training": (KI, 4 * MI, 64 * MI), "forward": (64 * MI,), "pair": (64 * MI,)},
}
DRAWN = {"float32": "#D55E00", "bfloat16": "#0072B2", "float16": "#009E73", "float64": "#CC79A7"}
RATIO = "{ratio median:.2f}"
QUARTILES = RATIO + " [{ratio first_quartile:.2f}, {ratio third_quartile:.2f}]"
STATIC = ("sigmoid_value", "sigmoid_value_and_derivative", "sigmoid_backward")
# Variants of the GPU kernels that decided something; the file has the others.
VARIANTS = (
    r"copy_|torch|(present|rounded|refined|no corr|hardware|entries|loads evict-f).*, (1024|256)/4"
)
COUNTS = ("misrounded", "zeroed", "decreasing")


class BadBlockError(ValueError):
    """A page asks for a table that is not there."""


def plain(rows: Sequence[Json]) -> str:
    """Markdown: the keys are the heads; numbers stand to the right."""
    lines = [[str(cell).replace("|", "\\|") for cell in row.values()] for row in rows]
    columns = zip(*lines, strict=True)
    aligned = ["right" if all(map(NUMBER.fullmatch, column)) else "left" for column in columns]
    form: Json = {"tablefmt": "pipe", "colalign": aligned, "disable_numparse": True}
    return tabulate(lines, list(rows[0]), **form)


def table(rows: Iterable[Json], columns: dict[str, str]) -> str:
    """Under each head its template, filled from the row."""
    return plain([{head: text.format_map(row) for head, text in columns.items()} for row in rows])


def record(name: str) -> Json:
    document: Json = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return document


def source(document: Json) -> str:
    changed = " with changes" if document.get("dirty") else ""
    return f"commit {document['commit'][:12]}{changed}, {document['date'][:10]}"


def of(document: Json) -> str:
    """Where a record was measured, with what, and when."""
    where = document.get("cpu") or document["gpu"]
    triton = f", Triton {document['triton']}" if "triton" in document else ""
    return f"\n\n{where}, torch {document['torch']}{triton}; {source(document)}."


# Rows of the benchmark, by machine.


def found(machine: str, *kinds: str) -> list[Result]:
    """The results of those kinds in a machine's folder, but for a kernel launched by Triton."""
    paths = sorted((FOLDER / machine).glob("*.json*"))
    wanted = [path for path in paths if path.name.split(".")[0].split("-")[-1] in kinds]
    return [_read(path) for path in wanted]


@cache
def _read(path: Path) -> Result:
    """Once: a sweep has thousands of rows, and several tables."""
    return results.read(path)


def rows_of(machine: str, *kinds: str) -> list[Row]:
    """Their rows; those of one kind, cell and peer give way to the newest."""
    newest: dict[tuple[Any, ...], Row] = {}
    for result in sorted(found(machine, *kinds), key=lambda each: (each.kind, each.date)):
        newest |= {(result.kind, row.cell, row.peer): row for row in result.rows}
    return list(newest.values())


def frame(machine: str, *kinds: str, **fields: Any) -> pd.DataFrame:
    """Their rows, in the order of the works, those whose columns have the given values."""
    rows = results.frame(rows_of(machine, *kinds))
    for name, value in fields.items():
        rows = rows[rows[name] == value]
    return described(rows)


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """With texts for the size, the place, and all that tells a cell from the rest of its work."""
    where = pd.Series(map(report.place_text, rows.itertuples()), rows.index, dtype=str)
    elements = rows["size"].map(report.size_text)
    layout = (", " + rows["layout"]).where(rows["layout"] != "contiguous", "")
    saved = (", saved=" + rows["saved"]).where(rows["saved"] != "auto", "")
    cell = rows["dtype"] + ", " + elements + ", " + where + layout + saved
    rank = rows["work"].map(list(WORKS).index)
    rows = rows.assign(where=where, elements=elements, cell=cell, rank=rank)
    return rows.sort_values("rank", kind="stable")


def measured(machine: str, *kinds: str) -> str:
    """On what, with what and when, below a table."""
    each = found(machine, *kinds)
    facts = each[0].machine
    sources = sorted({source({**result.source, "date": result.date}) for result in each})
    device = facts["name"] if machine.startswith("cuda") else MACHINES[machine]
    torch = " and ".join(sorted({result.machine["versions"]["torch"] for result in each}))
    return f"\n\n{device}, torch {torch}; {'; '.join(sources)}."


def speed_summary(*machines: str) -> str:
    """Times faster than torch: five rows, a column for each machine and dtype."""
    device = machines[0].partition("-")[0]
    lines: dict[str, Json] = {}
    for machine in machines:
        rows = frame(machine, "grid", "goals", peer="torch", layout="contiguous", saved="auto")
        for row in rows.to_dict("records"):
            work, size, dtype = row["work"], row["size"], row["dtype"]
            from_python = device == "cuda" and size == KI
            where = "wall time" if from_python else "device time"
            if row["where"] != ("1 thread" if device == "cpu" else where):
                continue
            if size in SUMMARY[device].get(work, ()) and dtype in ("float32", "bfloat16"):
                what = f"{WORKS[work]}, {row['elements']}{', from Python' * from_python}"
                line = lines.setdefault(what, {"times faster than torch": what})
                line[f"{MACHINES[machine]}, {dtype}"] = RATIO.format_map(row)
    heads = dict.fromkeys(key for line in lines.values() for key in line)
    whole = [{head: line.get(head, "") for head in heads} for line in lines.values()]
    made = (measured(machine, "grid", "goals").strip() for machine in machines)
    return f"{plain(whole)}\n\n{' '.join(made)}"


def speed(machine: str, *dtypes: str) -> str:
    """Times faster than torch by work and size, on one thread or by a GPU's clock."""
    rows = frame(machine, "grid", peer="torch", layout="contiguous", saved="auto")
    rows = rows[rows["where"].isin(["1 thread", "device time"]) & rows["dtype"].isin(dtypes)]
    sizes = rows.sort_values("size")["elements"].unique()
    rows = rows.assign(named=rows["dtype"].map(dtypes.index)).sort_values(["rank", "named"])
    lines = []
    for (work, dtype), group in rows.groupby(["work", "dtype"], sort=False):
        by_size = dict(zip(group["elements"], group["ratio median"], strict=True))
        ratios = {size: f"{by_size[size]:.2f}" if size in by_size else "" for size in sizes}
        lines.append({"times faster than torch": WORKS[work], "dtype": dtype, **ratios})
    return plain(lines) + measured(machine, "grid")


def judged(machine: str) -> pd.DataFrame:
    about = described(goals.judged(rows_of(machine, "goals")))
    return about.assign(verdict=about["met"].map({True: "met", False: "missed"}))


def goals_summary(machine: str) -> str:
    """Of each work and peer how many goals are met, and the one that is missed by most."""
    every = judged(machine)
    lines = []
    for (work, peer), group in every.groupby(["work", "peer"], sort=False):
        worst = group.loc[(group["ratio median"] / group["goal"]).idxmin()]
        line = {"work": WORKS[work], "beside": peer, "goals": len(group), "met": sum(group["met"])}
        line |= {"missed by most": "", "where": ""}
        if not worst["met"]:
            line["missed by most"] = "{ratio median:.2f} of {goal:.2f}".format_map(worst)
            line["where"] = worst["cell"]
        lines.append(line)
    counted = f"\n\n{sum(every['met'])} of {len(every)} goals are met."
    return plain(lines) + counted + measured(machine, "goals")


def sweep(machine: str, *by: str) -> str:
    """How many cells are slower than torch in three quarters of their rounds, and the worst; by
    work, or by what is named."""
    rows = frame(machine, "sweep", peer="torch")
    lines = []
    for key, group in rows.groupby(list(by or ("work",)), sort=False):
        worst = group.loc[group["ratio median"].idxmin()]
        slower = sum(map(report.is_slower, group["ratio third_quartile"]))
        line = {"work": WORKS[key[0]], **dict(zip(by[1:], key[1:], strict=True))}
        line["cells"] = len(group)
        line |= {"slower than torch": slower, "worst": QUARTILES.format_map(worst)}
        lines.append({**line, "where": worst["cell"]})
    return plain(lines) + measured(machine, "sweep")


def machine_page(machine: str) -> str:
    """All rows, in long tables."""
    parts = [
        f"# {MACHINES[machine]}",
        "Every row that the short tables of the [README](../../../README.md) and of"
        " [docs/](../../../docs/performance.md) are taken from, written by `make figures` from the"
        " files beside this page. A ratio is the peer's time over ours, the median of the rounds"
        " with its quartiles; above 1 ours is faster. Peers are rows of `bench/peers.py`; copies"
        " move as many bytes as the work; torch+thp and torch+avx2 run in processes of their own,"
        " with huge pages for torch and without AVX-512. What is blank was not measured.",
    ]
    place = {"dtype": "{dtype}", "work": "{work}", "on": "{where}", "size": "{elements}"}
    facts = []
    for result in found(machine, "goals", "grid", "sweep"):
        packages = ", ".join(" ".join(pair) for pair in result.machine["versions"].items())
        made = source({**result.source, "date": result.date})
        facts.append(f"- {result.kind}: {result.machine['name']}; {made}; {packages}")
    parts.append("\n".join(facts))
    if found(machine, "goals"):
        rows = judged(machine).sort_values("met", kind="stable")
        columns = {**place, "layout": "{layout}", "peer": "{peer}", "goal": "{goal:.2f}"}
        columns |= {"ratio": QUARTILES, "verdict": "{verdict}"}
        parts += [f"## Goals: {sum(rows['met'])} of {len(rows)} met, the missed first"]
        parts += [table(rows.to_dict("records"), columns)]
    if found(machine, "grid"):
        grid = frame(machine, "grid", layout="contiguous", saved="auto")
        grid = grid.sort_values(["dtype", "rank", "where", "size"])
        parts += ["## Times of peers and copies over ours, by size"]
        parts += [_speed_of_peers(grid, place)]
    if found(machine, "sweep"):
        parts += ["## Sweep", sweep(machine, "work", "saved", "layout")]
    return "\n\n".join(parts) + "\n"


def _speed_of_peers(grid: pd.DataFrame, place: dict[str, str]) -> str:
    lines: dict[tuple[str, ...], Json] = {}
    peers = list(grid["peer"].unique())
    for row in grid.to_dict("records"):
        key = tuple(template.format_map(row) for template in place.values())
        first = {**dict(zip(place, key, strict=True)), "ours": "", "GB/s": ""}
        line = lines.setdefault(key, first | dict.fromkeys(peers, ""))
        line["ours"] = line["ours"] or report.seconds_text(row["ours median"])
        line["GB/s"] = line["GB/s"] or f"{row['bytes_moved'] / row['ours median'] / 1e9:.3g}"
        line[row["peer"]] = RATIO.format_map(row)
    return plain(list(lines.values()))


def draw_speed(machine: str, path: Path) -> None:
    """How many times faster than torch, by size: a panel for each work, a line for each dtype."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = frame(machine, "grid", peer="torch", layout="contiguous", saved="auto")
    rows = rows[rows["where"].isin(["1 thread", "device time"])].sort_values("size")
    works = [w for w in ("forward", "pair", "training", "loss") if w in set(rows["work"])]
    if not works:
        return
    figure = Figure(figsize=(2.7 * len(works) + 0.6, 3.5), layout="constrained")
    panels = figure.subplots(1, len(works), sharey=True)
    for work, panel in zip(works, panels, strict=True):
        mine = rows[rows["work"] == work]
        for dtype, colour in DRAWN.items():
            line = mine[mine["dtype"] == dtype]
            style = {"marker": "o", "markersize": 4, "color": colour, "label": dtype}
            if len(line):
                panel.plot(line["size"], line["ratio median"], **style)
        panel.axhline(1, color="black", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        sizes = mine.drop_duplicates("size")
        panel.set_xticks(sizes["size"], sizes["elements"], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.grid(alpha=0.3)
        low, high = mine["ratio median"].agg(["min", "max"])
        panel.set_title(
            f"{WORKS[work]}:\n{low:.2f} to {high:.2f} times torch's speed", fontsize=9.5
        )
        panel.set_xlabel("elements")
    panels[0].set_ylabel("times faster than torch")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    on = "one thread" if machine.startswith("cpu") else "device time"
    figure.suptitle(f"{MACHINES[machine]}, {on}: above the black line ours is faster", fontsize=11)
    # No software version in the file: the same results give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


# Records: one function a table.


def gradient_accuracy() -> str:
    from examples.gradient_accuracy import LIMIT, summary

    document = record("gradient_accuracy")
    return f"{plain(summary(document))}{of(document)} Inputs are |x| up to {LIMIT:g}."


def loss_gradients() -> str:
    from examples.loss_gradients import summary

    document = record("loss_gradients")
    return plain(summary(document)) + of(document)


def wrong_labels() -> str:
    from examples.wrong_labels import summary

    document = record("wrong_labels")
    return plain(summary(document)) + of(document)


def instructions(*works: str) -> str:
    document = record("instructions")
    lines: dict[tuple[str, ...], Json] = {}
    for name, count in document["instructions_per_element"].items():
        instruction_set, work, dtype, memory = name.split()
        if not works or (memory == "contiguous" and work in works):
            key = {"instruction set": instruction_set, "work": work, "memory": memory}
            lines.setdefault(tuple(key.values()), key)[dtype] = f"{count:.2f}"
    made = f"Compiled by {document['compiler']}; tests/test_instructions.py counts them anew."
    return f"{plain(list(lines.values()))}\n\n{made}"


def fresh_processes(extent: str = "") -> str:
    """The smallest of torch's times over ours, and how many processes of ours were fast; with
    ``all`` for each cell, with its page faults."""
    from bench.fresh_processes import fast_processes, median

    document = record("fresh_processes")
    lines: dict[tuple[str, ...], Json] = {}
    for allocator, run in document["allocators"].items():
        groups: dict[tuple[str, ...], list[Json]] = {}
        for row in run["rows"]:
            cell = (report.size_text(row["elements"]), str(row["threads"]))
            groups.setdefault((row["work"], *(cell if extent else ())), []).append(row)
        for key, rows in groups.items():
            slowest = min(
                median(row, "torch", "seconds") / median(row, "ours", "seconds") for row in rows
            )
            processes = sum(len(row["ours"]) for row in rows)
            text = f"{slowest:.2f}; {sum(map(fast_processes, rows))} of {processes}"
            if extent:
                ours, torch = (median(rows[0], side, "page_faults") for side in ("ours", "torch"))
                text += f"; {ours:,.0f} / {torch:,.0f} faults"
            heads = dict(zip(("work", "size", "threads"), (WORKS[key[0]], *key[1:]), strict=False))
            # A row that another allocator has not is empty there.
            heads |= dict.fromkeys(document["allocators"], "")
            lines.setdefault(key, heads)[allocator] = text
    names: dict[str, list[str]] = {}
    for name, run in document["allocators"].items():
        names.setdefault(of(run).strip(), []).append(name)
    made = " ".join(f"{', '.join(each)}: {facts}" for facts, each in names.items())
    return f"{plain(list(lines.values()))}\n\n{made}"


def static(capability: str = "90") -> str:
    """What decides: instructions, registers, warps, bytes in flight, and which resource binds."""
    document = record("static")
    chosen = [row for row in document["kernels"] if row["kernel"] in STATIC]
    rows = [row for row in chosen if row["capability"] == int(capability)]
    for row in rows:
        row["share"] = 100 * row["arithmetic_seconds"] / row["bandwidth_seconds"]
        row["flight"] = row["loads_in_flight"] / KI
    columns = {"kernel": "{kernel}", "dtype": "{dtype}", "instructions an element": "{total:.1f}"}
    columns |= {"registers": "{registers}", "warps": "{warps}", "KiB in flight": "{flight:.0f}"}
    columns |= {"arithmetic / memory": "{share:.0f} %", "bound": "{bound}"}
    gpu = "{gpu}: {multiprocessors} multiprocessors, {clock:.3g} Hz, {bandwidth:.3g} bytes/s"
    gpu = gpu.format_map(document["architectures"][capability])
    made = f"Compiled by Triton {document['triton']}; {source(document)}."
    return f"{table(rows, columns)}\n\n{gpu}. {made}"


def gpu_variants() -> str:
    """Microseconds of the variants of the kernels for tensors of 128 MiB."""
    document = record("cuda-h100/variants")
    works = ("forward", "pair", "backward")
    entries = [e for e in document["found"] if e.get("work") in works and e["size"] > MI]
    names = dict.fromkeys(name for entry in entries for name in entry["microseconds"])
    lines = []
    for name in filter(re.compile(VARIANTS).fullmatch, names):
        shown = name.replace("present", "as of that commit")
        line = {"128 MiB a tensor, µs": shown}
        for entry in entries:
            time = entry["microseconds"].get(name)
            line[f"{entry['work']} {entry['dtype']}"] = f"{time:.1f}" if time else ""
        lines.append(line)
    return plain(lines) + of(document)


def gpu_loss() -> str:
    """The loss of logits on a GPU: its goals."""
    every = judged("cuda-h100")
    rows = every[every["work"] == "loss"].to_dict("records")
    columns = {"a step, logits to gradient": "{cell}", "beside": "{peer}", "goal": "{goal:.2f}"}
    columns |= {"ratio": QUARTILES, "verdict": "{verdict}"}
    return table(rows, columns) + measured("cuda-h100", "goals")


def gpu_launches() -> str:
    """Times faster than torch from Python, launched by the extension and by Triton."""
    heads = {"grid": "launched by the extension", "triton": "launched by Triton"}
    lines: dict[str, Json] = {}
    for kind, head in heads.items():
        for row in frame("cuda-h100", kind, peer="torch", clock="wall").to_dict("records"):
            what = f"{WORKS[row['work']]}, {row['cell']}"
            text = f"{row['ratio median']:.2f}, {report.seconds_text(row['ours median'])} a call"
            lines.setdefault(what, {"times faster than torch": what})[head] = text
    both = [line for line in lines.values() if len(line) == 3]
    return plain(both) + measured("cuda-h100", "grid")


def tested_releases() -> str:
    rows = []
    for each in record("compatibility")["outcomes"]:
        # The exact versions are missing where torch could not be imported.
        asked = {"python_version": each["python"], "torch_version": each["torch"]}
        row = {"triton_version": "", **asked, **each, "source": source(each)}
        row["failed"] = row.get("failures", 0) + row.get("errors", 0)
        row["passed"] = row.get("tests", 0) - row.get("skipped", 0) - row["failed"]
        row.setdefault("skipped", f"no {row.get('failed_at')}")
        rows.append(row)
    columns = {"Python": "{python_version}", "torch": "{torch_version}"}
    columns |= {"Triton": "{triton_version}", "passed": "{passed:,}"}
    columns |= {"skipped or known to fail": "{skipped}", "failed": "{failed}"}
    return table(rows, columns | {"of": "{source}"})


def error_budget() -> str:
    """Each term's bound and the largest error seen, in ulp."""
    heads = {"t": "t ≤", "complement": "1 - t ≤", "derivative": "t - t² ≤"}
    lines = []
    for term in record("error_budget")["terms"]:
        line = {"term": term["name"]}
        for column, head in heads.items():
            line[head] = _ulp(term["bounds"]["float32"][column])
            line[f"seen of {head[:-2]}"] = _ulp(term["seen"][column])
        lines.append({**line, "float64: t ≤": _ulp(term["bounds"]["float64"]["t"])})
    return plain(lines)


def _ulp(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.3f}" if number >= 0.001 else f"{number:.0e}"


def checks() -> list[Json]:
    paths = sorted(FOLDER.glob("*/check.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def checked_machines() -> str:
    lines = [
        {
            "device": ", ".join([check["machine"]["cpu"], *check["machine"]["cuda"]]),
            "instruction sets": ", ".join(check["machine"]["instruction_sets"]),
            "versions": ", ".join(" ".join(pair) for pair in check["versions"].items()),
            "date": check["date"][:10],
            "time": f"{sum(check['seconds'].values()) / 60:.1f} min",
        }
        for check in checks()
    ]
    return plain(lines)


def checked_errors(unit: str = "ulp") -> str:
    """The largest error with its bound and torch's, and in ulp the counts as ours / torch's; those
    kernels and quantities of a dtype that have the same figures share a line."""
    shared: dict[str, tuple[dict[str, None], dict[str, None], Json]] = {}
    for row in (row for check in checks() for row in check["rows"] if row["unit"] == unit):
        figures = {name: row["figures"].get(name) for name in ("error", *COUNTS)}
        # A line says of all its quantities that all its kernels were run; of the loss those of
        # another file may not have been.
        of_loss = row["quantity"].startswith("loss")
        key = json.dumps([row["dtype"], row["inputs"], of_loss, figures])
        kernels, quantities, _ = shared.setdefault(key, ({}, {}, row))
        device = "" if row["device"] == "cpu" else f"{row['device']} "
        kernels[device + row["kernels"]] = None
        quantities[row["quantity"]] = None
    lines = []
    for kernels, quantities, row in shared.values():
        error = row["figures"]["error"]
        line = {"dtype": row["dtype"], "quantity": "; ".join(quantities)}
        line |= {"kernels": ", ".join(kernels), "inputs": f"{row['inputs']:,}"}
        line["error"] = _error(error["ours"])
        line["bound"] = "all nearest" if error["bound"] is None else f"{error['bound']:g}"
        line["at x"] = "" if error["at"] is None else f"{error['at']:.6g}"
        line["torch's"] = _error(error["torch"])
        for name in COUNTS if unit == "ulp" else ():
            counted = row["figures"].get(name)
            head = "steps down" if name == "decreasing" else name
            line[head] = "{ours:,.0f} / {torch:,.0f}".format_map(counted) if counted else ""
        lines.append(line)
    return plain(lines)


def _error(number: float | str) -> str:
    # An infinite error is stored as a string.
    if isinstance(number, str):
        return number
    if 1000 <= number < 1e6:
        return f"{number:,.0f}"
    return f"{number:.4f}" if 0.001 <= number < 1000 else f"{number:.2g}"


LONG_CHECKS = {
    "sanitize": "sanitizers, {name}: {kernel_executions:,} kernel executions",
    "arm": "64-bit ARM, emulated, {name}: {kernel_executions:,} kernel executions",
    "fuzz": "libFuzzer: {kernel_executions:,} kernel executions, {covered_edges:,} edges covered",
    "properties": "hypothesis: {examples:,} examples of {tests} properties",
    "programs": "random programs, {name}: {programs:,}; {compared:,} tensors compared",
    "threads": "{calls:,} calls by {threads} Python threads: {wrong} wrong results",
    "small_calls": "{calls:,} small calls: memory grew by {grown:,.0f} KiB",
    "large_steps": "{calls:,} steps of {elements:,} elements: memory grew by {grown:,.0f} KiB",
    "training": "{steps:,} training steps beside nn.Sigmoid: losses within"
    " {largest_relative_difference:.1e}",
    "training_before_bce": "{steps:,} training steps, nn.BCELoss behind the sigmoid: losses within"
    " {largest_relative_difference:.1e}",
}


def long_checks() -> str:
    """What ran and what came of it, how long it took, on what and when."""
    lines = []
    for section, document in record("reliability").items():
        figures = (
            {"": document["figures"]} if section in ("fuzz", "properties") else document["figures"]
        )
        for name, row in figures.items() if section != "defects" else ():
            if "resident_bytes_after" in row:
                row["grown"] = (row["resident_bytes_after"] - row["resident_bytes_before"]) / KI
            said = LONG_CHECKS[name if section == "load" else section].format(name=name, **row)
            minutes = f"{row['seconds'] / 60:.1f}"
            line = {"check": said, "minutes": minutes, "on": document["cpu"]}
            lines.append({**line, "code of": source(document)})
    return plain(lines)


def defects() -> str:
    section = record("reliability")["defects"]
    columns = {"defect": "{defect}", "in": "`{file}`", "caught by": "`{check}`"}
    return table(section["figures"]["planted"], columns) + f"\n\nOf {source(section)}."


TABLES: dict[str, Callable[..., str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(speed_summary, speed, goals_summary, sweep),
        *(gradient_accuracy, loss_gradients, wrong_labels),
        *(instructions, fresh_processes),
        *(static, gpu_variants, gpu_loss, gpu_launches, tested_releases),
        *(error_budget, checked_machines, checked_errors),
        *(long_checks, defects),
    )
}


def fill(text: str) -> str:
    """The Markdown with every marked block written anew."""

    def replace(block: re.Match[str]) -> str:
        name, *words = block[2].split()
        if name not in TABLES:
            raise BadBlockError(f"figures:begin {name}: accepted are {', '.join(TABLES)}")
        try:
            return f"{block[1]}{TABLES[name](*words)}\n{block[4]}"
        except (TypeError, KeyError, IndexError, OSError) as error:
            raise BadBlockError(f"figures:begin {block[2]}: {error!r}") from error

    filled, count = BLOCK.subn(replace, text)
    if count != text.count("<!-- figures:begin "):
        raise BadBlockError("a figures:begin marker has no figures:end after it")
    return filled


def written() -> dict[Path, str]:
    """Every page as the results have it."""
    pages = {path: fill(path.read_text(encoding="utf-8")) for path in PAGES}
    return pages | {FOLDER / name / "README.md": machine_page(name) for name in MACHINES}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pages", description="Write the tables and pictures of results."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    checking = parser.parse_args(arguments).check
    pages = written()
    stale = [p for p, text in pages.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if checking:
            print(f"{name} is stale; run python -m bench.pages", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
            print(f"wrote {name}")
    for machine in MACHINES:
        if found(machine, "grid") and not checking:
            draw_speed(machine, ROOT / "docs/figures" / f"speed-{machine}.png")
    return 1 if checking and stale else 0


if __name__ == "__main__":
    sys.exit(main())
