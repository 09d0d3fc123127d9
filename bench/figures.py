"""Pictures and Markdown tables from result files; measures nothing and needs no torch.

    python -m bench.figures RESULT.json [...] --output docs/figures
    python -m bench.figures RESULT.json [...] --write README.md [--check]

A Markdown file names what it wants between markers, with filters on a row's cell and the machine:

    <!-- figures:begin speed device=cpu capability=AVX2 threads=1 dtype=float32 -->
    <!-- figures:end -->

Depends on results and report for what is drawn, on matplotlib for drawing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench import (
    fresh_processes,
    goals,
    gpu_tables,
    instructions,
    loss_gradients,
    loss_memory,
    override,
    report,
    results,
    static,
    sweep,
    wrong_labels,
)
from bench.results import COPIES, COPY, OURS, STREAMED_COPY, Cell, Result, Row

# One colour a peer in every picture (Okabe and Ito's set, told apart by the colour-blind too).
COLOURS = {
    OURS: "#D55E00",
    "torch": "#0072B2",
    "sigmoid+bce": "#882255",
    "torch.compile": "#009E73",
    "torch+thp": "#56B4E9",
    "onnxruntime": "#CC79A7",
    "scipy": "#B8860B",
    "numexpr": "#8B5A2B",
    "jax": "#2F4F4F",
    "flag_gems": "#7B5EA7",
    "saved=derivative": "#0072B2",
    "saved=input": "#009E73",
    "saved=output": "#CC79A7",
    COPY: "#777777",
    STREAMED_COPY: "#AAAAAA",
}
MARKERS = {OURS: "o", COPY: "", STREAMED_COPY: ""}
# As bench.works has them; figures are drawn where torch, on which that depends, is not.
WORK_TITLES = {
    "forward": "forward, out= given",
    "forward-fresh": "forward, fresh output",
    "pair": "value and derivative",
    "training": "forward + backward",
    "bce": "forward + BCELoss + backward",
    "backward": "backward alone",
    "loss": "mean loss + backward",
    "loss-forward": "mean loss alone",
    "loss-none": "losses + backward",
}
RESOLUTION = 130
WIDEST_BAR = 0.3

# Those with a record of their own, and those of the rows of result files.
RECORDED: dict[str, Callable[[], str]] = {
    "fresh-processes": fresh_processes.markdown,
    "gpu-launches": gpu_tables.launches,
    "gpu-steps": gpu_tables.steps,
    "gpu-variants": gpu_tables.variants,
    "instructions": instructions.markdown,
    "loss-gradients": loss_gradients.markdown,
    "loss-memory": loss_memory.markdown,
    "override": override.markdown,
    "static": static.markdown,
    "wrong-labels": wrong_labels.markdown,
}
TABLES: dict[str, Callable[[list[Row]], str]] = {
    "speed": report.markdown_speed,
    "roofline": report.markdown_roofline,
    "goals": goals.markdown,
    "sweep": sweep.markdown,
}
FILTERS = (
    *("device", "dtype", "work", "size", "threads", "clock", "cache", "layout", "saved", "peer"),
    *("capability", "cpu"),  # for a whole result, a word of the CPU's name; the others are a row's
)

BLOCK = re.compile(
    r"(?P<begin><!-- figures:begin (?P<name>.+?) -->\n)(?P<body>.*?)(?P<end><!-- figures:end)",
    re.DOTALL,
)


class BadBlockError(ValueError):
    """A marker in a Markdown file asks for something that is not there."""


def draw(found: Sequence[Result], folder: Path) -> list[Path]:
    """Two pictures for each device, clock, number of threads and dtype; returns their paths.

    Their names hold the machine's only where several would get the same name otherwise, so that a
    page's link outlives a measurement on another machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stories: dict[tuple[str, str, str], list[Row]] = {}
    machines: dict[str, set[str]] = {}
    for result in found:
        if result.kind != "bench":
            continue
        for row in result.rows:
            cell = row.cell
            on_cpu = cell.device == "cpu"
            name = result.machine["name"]
            if on_cpu:  # a cloud gives many processors one name
                name += f", {result.machine['cpu_capability']}"
            on = report.threads_text(cell.threads) if on_cpu else f"{cell.clock} time"
            stories.setdefault((name, f"{cell.device}, {on}", cell.dtype), []).append(row)
            machines.setdefault(cell.device, set()).add(name)
    written = []
    for (name, place, dtype), rows in stories.items():
        several = len(machines[rows[0].cell.device]) > 1
        slug = _slug(f"{place} {name} {dtype}" if several else f"{place} {dtype}")
        title = f"{dtype}\n{name}, {place.partition(', ')[2]}"
        written.append(folder / f"time-{slug}.png")
        _save(_time_per_element(rows, title), written[-1])
        if any(row.peer not in COPIES for row in rows):
            written.append(folder / f"speed-{slug}.png")
            _save(_speed(rows, title), written[-1])
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _time_per_element(rows: list[Row], title: str) -> Figure:
    figure, panels = _panels(rows)
    for panel, cell_rows in panels:
        for peer, points in _curves(cell_rows).items():
            sizes = [cell.size for cell, _ in points]
            times = [seconds / cell.size * 1e9 for cell, seconds in points]
            panel.plot(
                sizes,
                times,
                color=COLOURS.get(peer),
                marker=MARKERS.get(peer, "."),
                linestyle="--" if peer in COPIES else "-",
                linewidth=2.2 if peer == OURS else 1.4,
                zorder=3 if peer == OURS else 2,
                label=_label(peer),
            )
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _size_axis(panel, [row.cell.size for row in cell_rows])
        if _is_first_column(panel):
            panel.set_ylabel("ns per element")
    _finish(figure, f"Time per element: {title}")
    return figure


def _speed(rows: list[Row], title: str) -> Figure:
    rows = [row for row in rows if row.peer not in COPIES]
    figure, panels = _panels(rows)
    for panel, cell_rows in panels:
        sizes = sorted({row.cell.size for row in cell_rows})
        peers = list(dict.fromkeys(row.peer for row in cell_rows))
        width = min(0.8 / len(peers), WIDEST_BAR)
        for place, peer in enumerate(peers):
            mine = [row for row in cell_rows if row.peer == peer]
            middle = (place - (len(peers) - 1) / 2) * width
            where = [sizes.index(row.cell.size) + middle for row in mine]
            ratio = [row.ratio.median for row in mine]
            panel.bar(
                where,
                [value - 1 for value in ratio],
                width,
                bottom=1,
                color=COLOURS.get(peer),
                label=_label(peer),
                yerr=[
                    [row.ratio.median - row.ratio.first_quartile for row in mine],
                    [row.ratio.third_quartile - row.ratio.median for row in mine],
                ],
                error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            )
        panel.axhline(1, color="black", linewidth=1)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low = min(row.ratio.first_quartile for row in cell_rows)
        high = max(row.ratio.third_quartile for row in cell_rows)
        panel.set_ylim(min(0.5, 0.9 * low), max(2, 1.1 * high))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_xticks(range(len(sizes)), [report.size_text(size) for size in sizes])
        panel.set_xlim(-0.5, len(sizes) - 0.5)
        panel.set_xlabel("elements")
        if _is_first_column(panel):
            panel.set_ylabel("peer's time / ours")
    _finish(figure, f"Speed-up, above 1 ours is faster: {title}")
    return figure


def _panels(rows: list[Row]) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """A panel for each work and layout, two in a line; works in the order of their titles, however
    many results they come from."""
    order = list(WORK_TITLES)
    works: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: order.index(row.cell.work)):
        title = WORK_TITLES[row.cell.work]
        title += f", saved={row.cell.saved}" * (row.cell.saved != "auto")
        title += f", {row.cell.layout}" * (row.cell.layout != "contiguous")
        works.setdefault(title, []).append(row)
    columns = min(2, len(works))
    lines = math.ceil(len(works) / columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(0.8 + 5.2 * columns, 1.4 + 3.1 * lines),
        squeeze=False,
        layout="constrained",
    )
    panels = []
    for panel in axes.flat[len(works) :]:
        panel.set_axis_off()
    for (work, chosen), panel in zip(works.items(), axes.flat, strict=False):
        panel.set_title(work, fontsize=10)
        panel.grid(True, which="major", linewidth=0.4, alpha=0.5)
        panel.set_axisbelow(True)
        panels.append((panel, chosen))
    return figure, panels


def _is_first_column(panel: Axes) -> bool:
    place = panel.get_subplotspec()
    return place is None or place.is_first_col()


def _curves(rows: list[Row]) -> dict[str, list[tuple[Cell, float]]]:
    """Seconds by size for ours and for every peer; ours from the row measured beside torch's, the
    curve that it is compared with most: what malloc holds differs from pair to pair."""
    curves: dict[str, dict[Cell, float]] = {OURS: {}}
    for row in rows:
        curves.setdefault(row.peer, {})[row.cell] = row.theirs.median
        if row.peer == sweep.PEER or row.cell not in curves[OURS]:
            curves[OURS][row.cell] = row.ours.median
    return {
        peer: sorted(points.items(), key=lambda point: point[0].size)
        for peer, points in curves.items()
    }


def _size_axis(panel: Axes, sizes: Iterable[int]) -> None:
    shown = sorted(set(sizes))
    panel.set_xscale("log", base=2)
    # Every fourth power at most: labels of neighbours would touch.
    kept = [size for at, size in enumerate(shown) if len(shown) <= 6 or at % 2 == 0]
    panel.set_xticks(kept, [report.size_text(size) for size in kept])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("elements")


def _label(peer: str) -> str:
    return f"{peer} of as many bytes" if peer in COPIES else peer


def _finish(figure: Figure, title: str) -> None:
    labels: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.suptitle(title, fontsize=12)
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside lower center",
        ncols=min(4, max(1, math.ceil(len(labels) / 2))),
        frameon=False,
    )


def _save(figure: Figure, path: Path) -> None:
    # No software version in the file: the same results give the same bytes.
    figure.savefig(path, dpi=RESOLUTION, metadata={"Software": None})
    plt.close(figure)


def fill(text: str, found: Sequence[Result]) -> str:
    """The Markdown with every marked block generated anew."""
    return fill_blocks(text, lambda name: _table(name, found))


def fill_blocks(text: str, table: Callable[[str], str]) -> str:
    """The Markdown with ``table`` of its name in every marked block."""

    def replace(block: re.Match[str]) -> str:
        return block["begin"] + table(block["name"]) + "\n" + block["end"]

    filled, count = BLOCK.subn(replace, text)
    if count != text.count("<!-- figures:begin "):
        raise BadBlockError("a figures:begin marker has no figures:end after it")
    return filled


def fill_named(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The Markdown with the table that each marked block names in full."""

    def table(name: str) -> str:
        if name not in tables:
            accepted = ", ".join(tables)
            raise BadBlockError(f"figures:begin {name}: no such table; accepted are {accepted}")
        return tables[name]()

    return fill_blocks(text, table)


def write_pages(filled: Mapping[Path, str], check: bool, module: str) -> int:
    """Writes the pages that differ and returns 0; with ``check`` it only names them on stderr, and
    returns 1 if there are any."""
    stale = [path for path, text in filled.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is stale; run python -m {module} with --write", file=sys.stderr)
        else:
            path.write_text(filled[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if check and stale else 0


def _table(name: str, found: Sequence[Result]) -> str:
    kind, *words = name.split()
    if kind in RECORDED:
        return RECORDED[kind]()
    if kind != "machine" and kind not in TABLES:
        accepted = ", ".join(("machine", *RECORDED, *TABLES))
        raise BadBlockError(f"figures:begin {name}: no table {kind!r}; accepted are {accepted}")
    wanted: dict[str, set[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or key not in FILTERS:
            raise BadBlockError(
                f"figures:begin {name}: {word!r} is no filter;"
                f" accepted are {', '.join(f'{key}=VALUE[,VALUE]' for key in FILTERS)}"
            )
        wanted[key] = set(values.split(","))
    if capable := wanted.pop("capability", None):
        found = [result for result in found if result.machine["cpu_capability"] in capable]
    if words_of_cpu := wanted.pop("cpu", None):
        found = [r for r in found if words_of_cpu & set(r.machine["cpu"].split())]
    if kind == "machine":
        if not set(wanted) <= {"device", "work"}:
            raise BadBlockError(
                f"figures:begin {name}: of a machine only device, work, capability and cpu can be"
                " chosen"
            )
        found = [r for r in found if any(_matches(row, wanted) for row in r.rows)]
        if found:
            return report.markdown_machine(found)
    rows = [row for result in _told_by(kind, found) for row in result.rows if _matches(row, wanted)]
    if not rows:
        raise BadBlockError(f"figures:begin {name}: no row of the results matches")
    return TABLES[kind](rows)


def _told_by(table: str, found: Sequence[Result]) -> list[Result]:
    """The results of the run made for a table; goals can be read off any, where there is none."""
    own = [result for result in found if result.kind == table]
    if own or table == "sweep":
        return own
    return [result for result in found if result.kind == "bench"]


def _matches(row: Row, wanted: dict[str, set[str]]) -> bool:
    return all(
        str(row.peer if key == "peer" else getattr(row.cell, key)) in values
        for key, values in wanted.items()
    )


def fill_page(
    arguments: Sequence[str] | None,
    command: str,
    description: str,
    tables: Callable[[Any], Mapping[str, Callable[[], str]]],
) -> int:
    """The command line of the modules that fill one page's blocks from one file of figures."""
    parser = argparse.ArgumentParser(prog=f"python -m {command}", description=description)
    add = parser.add_argument
    add("figures", type=Path, metavar="FIGURES.json")
    add("--write", type=Path, required=True, metavar="FILE.md", help="fill this file's blocks")
    add("--check", action="store_true", help="write nothing; exit 1 if --write would change it")
    chosen = parser.parse_args(arguments)
    stored = json.loads(chosen.figures.read_text(encoding="utf-8"))
    filled = fill_named(chosen.write.read_text(encoding="utf-8"), tables(stored))
    return write_pages({chosen.write: filled}, chosen.check, command)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures", description="Draw and tabulate result files."
    )
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULT.json")
    add("--output", type=Path, metavar="FOLDER", help="draw the pictures into this folder")
    add("--write", type=Path, nargs="+", metavar="FILE.md", help="fill these files' blocks")
    add("--check", action="store_true", help="write nothing; exit 1 if --write would change a file")
    chosen = parser.parse_args(arguments)
    if not chosen.output and not chosen.write:
        parser.error("nothing to do: give --output FOLDER, --write FILE.md or both")
    try:
        found = [results.read(path) for path in chosen.results]
        pages = chosen.write or ()
        filled = {path: fill(path.read_text(encoding="utf-8"), found) for path in pages}
    except (OSError, ValueError) as error:
        parser.error(str(error))

    status = write_pages(filled, chosen.check, "bench.figures")
    if chosen.output and not chosen.check:
        for path in draw(found, chosen.output):
            print(f"wrote {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
