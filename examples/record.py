"""The record of a demonstration, in bench/results, and its picture, in docs/figures.

Depends on the standard library to read, on bench.results to write, on Pillow, which matplotlib
needs itself, to save a picture.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

TORCH, FUSED, LOGITS = "nn.Sigmoid", "FusedSigmoid", "BCEWithLogitsLoss"
HEADS = (TORCH, FUSED, LOGITS)
WAYS = {TORCH: f"{TORCH} + BCELoss", FUSED: f"{FUSED} + BCELoss", LOGITS: LOGITS}
# Of the palette by Okabe and Ito, which the colour-blind can tell apart.
COLOURS = {
    TORCH: "#D55E00",
    FUSED: "#0072B2",
    LOGITS: "#000000",
    "nn.Tanh": "#009E73",
    "nn.ReLU": "#CC79A7",
}
GREY = "#666666"

# A page shows a picture of 10 inches on some 830 pixels, or twice as many on a dense screen.
DOTS_PER_INCH = 150
# Lines in a few colours, and their edges: more cannot be told apart and double the file.
PALETTE = 64


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of ``python -m examples.NAME``, which draws what ``--measure`` recorded."""
    found = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--measure", action="store_true", help="measure anew and record it, in place of drawing")
    add("--record", type=Path, default=path_of(name), metavar="FILE.json")
    add("--picture", type=Path, default=ROOT / f"docs/figures/{name}.png", metavar="FILE.png")
    return found


def path_of(name: str) -> Path:
    return ROOT / f"bench/results/{name}.json"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write(path: Path, name: str, **content: Any) -> None:
    from bench.results import write_record

    write_record(path, f"python -m examples.{name} --measure", **content)
    print(f"wrote {path}")


def finish(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def finish_figure(figure: Any, title: str) -> None:
    """A title above, below it the legend of the first panel, where a label stands once."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(entries)}
    figure.legend(entries.values(), entries.keys(), frameon=False, **place)
    figure.suptitle(title, fontsize=12)


def shade(axes: Any, start: float, end: float) -> None:
    """Where nn.Sigmoid's gradient is lost."""
    axes.axvspan(start, end, color=COLOURS[TORCH], alpha=0.12, linewidth=0)


def save(figure: Any, path: Path) -> None:
    """The same record gives the same bytes: the file holds no software's version and no time."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    picture = Image.open(drawn).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}")
