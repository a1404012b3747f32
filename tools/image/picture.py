"""The map of an image as a picture: cells in rows like those of a defragmenter.

Invariants:

* Cells are in the order of their addresses, each row begins with its address, and a cell that
  stands for several kinds is divided among them; a kind that is there is seen, however little of
  it there is.
* Kinds differ in brightness or hatching, too, not in hue alone (colours after Okabe and Ito, "Color
  Universal Design", 2008).
* The same survey gives the same bytes, whatever matplotlib is configured to; nothing of matplotlib
  is changed for others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from capstore.images.durable import replace_file
from capstore.schema.errors import Unsupported
from capstore.schema.sizes import format_size
from capstore.tools.console import local_error, printable
from capstore.tools.image.survey import KINDS, UNACCOUNTED, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawer = Callable[[Survey, str, Path], None]

COLUMNS: Final = 64
_TITLE_CHARS_MAX: Final = 80
_SHARE_MIN: Final = 0.18
_DPI: Final = 150
_INK: Final = "#222222"
_WIDTH: Final = 10.0
_ROW_HEIGHT: Final = 0.17


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind is drawn; `lines` is the colour of the hatching."""

    colour: str
    hatch: str = ""
    lines: str = _INK


LOOKS: Final = {
    "superblock": Look("#1a1a1a"),
    "table": Look("#0072b2"),
    "directory": Look("#56b4e9"),
    "header": Look("#f0b429"),
    "log": Look("#cc79a7"),
    "data": Look("#009e73"),
    "dead": Look("#7a4b12"),
    "free": Look("#f2f2f2"),
    "unused": Look("#cfcfcf"),
    "damaged": Look("#d55e00", hatch="xxxxxx", lines="#000000"),
    UNACCOUNTED: Look("#ffffff", hatch="//////", lines="#bbbbbb"),
}


def drawer() -> Drawer:
    """What draws a survey, with a title, into a file.

    Raises `Unsupported` where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise Unsupported("pictures need matplotlib: pip install 'capstore[picture]'")
    return _draw


def _draw(survey: Survey, title: str, path: Path) -> None:
    """Raises `StorageError` where `path` cannot be written."""
    content = rendered(survey, title, path.suffix.lower().removeprefix("."))
    try:
        replace_file(path, content, mode=0o644)
    except OSError as error:
        raise local_error(error, str(path)) from error


def rendered(survey: Survey, title: str, kind: str) -> bytes:
    """The picture as ``svg`` or ``png``."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings = {"svg.hashsalt": "capstore", "svg.fonttype": "path", "hatch.linewidth": 0.6}
        matplotlib.rcParams.update(settings)  # type: ignore[arg-type]
        figure = _figure(survey, title)
        canvas = FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        output = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        canvas.print_figure(output, format=kind, dpi=_DPI, metadata=metadata)
    return output.getvalue()


def _figure(survey: Survey, title: str) -> Figure:
    from matplotlib.figure import Figure

    cells = survey.cells()
    rows = -(-len(cells) // COLUMNS)
    legend = list(survey.totals())
    legend_rows = -(-len(legend) // 3)
    above, below = 0.75, 0.35 + 0.26 * legend_rows
    height = above + rows * _ROW_HEIGHT + below
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    left, right = 0.1, 0.975
    axes = figure.add_axes(
        (left, below / height, right - left, rows * _ROW_HEIGHT / height), frameon=False
    )
    figure.text(left, 1 - 0.3 / height, _fitting(title), fontsize=13, weight="bold", color=_INK)
    caption = _caption(survey, len(cells))
    figure.text(left, 1 - 0.58 / height, caption, fontsize=8.5, color="#555555")
    _draw_cells(axes, cells)
    _label_rows(axes, survey, rows)
    _draw_legend(figure, survey, legend, left)
    return figure


def _fitting(title: str) -> str:
    """The title, printable and not too long; a dollar would begin a formula."""
    text = printable(title).replace("$", r"\$")
    return text if len(text) <= _TITLE_CHARS_MAX else text[: _TITLE_CHARS_MAX - 1] + "…"


def _caption(survey: Survey, count: int) -> str:
    if not survey.size:
        return "nothing in it"
    cells = f"{count} cells" if count > 1 else "1 cell"
    return (
        f"{cells} of {_exact(survey.cell_bytes)}, {COLUMNS} in a row; "
        "a cell of several kinds is divided among them"
    )


def _exact(power: int) -> str:
    """A power of two with its unit."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if power >= 1024**exponent:
            return f"{power // 1024**exponent} {unit}"
    return f"{power} byte" + ("s" if power > 1 else "")


# Cells -------------------------------------------------------------------------------------------


def _draw_cells(axes: Axes, cells: npt.NDArray[np.int64]) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    rows = -(-len(cells) // COLUMNS)
    polygons: dict[int, list[list[tuple[float, float]]]] = {}
    for kind, left, right, top, bottom in _rectangles(_shares(cells)):
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        polygons.setdefault(kind, []).append(corners)
    for kind, outlines in sorted(polygons.items()):
        look = LOOKS[KINDS[kind]]
        edge = look.lines if look.hatch else look.colour
        axes.add_collection(
            PolyCollection(
                outlines,
                facecolors=look.colour,
                edgecolors=edge,
                linewidths=0,
                hatch=look.hatch or None,
            )
        )
    axes.add_collection(LineCollection(list(_grid(len(cells))), colors="white", linewidths=1.2))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(rows, 0)


def _shares(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How much of each cell each kind gets: of its height, from above."""
    lengths = np.maximum(cells.sum(axis=1, keepdims=True), 1)
    shares = cells / lengths
    there = cells > 0
    shares = np.where(there, np.maximum(shares, _SHARE_MIN), 0)
    sums = np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    return np.where(there, shares / sums, 0)


def _rectangles(
    shares: npt.NDArray[np.float64],
) -> Iterator[tuple[int, float, float, float, float]]:
    """(kind, left, right, top, bottom), equal neighbours in one row joined."""
    begin = 0
    while begin < len(shares):
        row, column = divmod(begin, COLUMNS)
        row_end = min(len(shares), (row + 1) * COLUMNS)
        end = begin + 1
        while end < row_end and np.array_equal(shares[begin], shares[end]):
            end += 1
        top = float(row)
        for kind in np.flatnonzero(shares[begin]).tolist():
            bottom = top + float(shares[begin, kind])
            yield kind, float(column), float(column + end - begin), top, bottom
            top = bottom
        begin = end


def _grid(count: int) -> Iterator[Sequence[tuple[float, float]]]:
    """The lines between cells."""
    rows, over = divmod(count, COLUMNS)
    for column in range(COLUMNS + 1):
        bottom = rows + (1 if column <= over and over else 0)
        yield [(column, 0), (column, bottom)]
    for row in range(rows + (2 if over else 1)):
        yield [(0, row), (COLUMNS if row <= rows else over, row)]


def _label_rows(axes: Axes, survey: Survey, rows: int) -> None:
    step = max(1, math.ceil(rows / 16))
    ticks = list(range(0, rows, step))
    labels = [_address(row * COLUMNS * survey.cell_bytes) for row in ticks]
    axes.set_yticks([tick + 0.5 for tick in ticks], labels, fontsize=8, color="#555555")
    axes.set_xticks([])
    axes.tick_params(length=0)


def _address(offset: int) -> str:
    return "0" if not offset else format_size(offset).replace(".0 ", " ")


# The legend --------------------------------------------------------------------------------------


def _draw_legend(figure: Figure, survey: Survey, kinds: Sequence[str], left: float) -> None:
    from matplotlib.patches import Patch

    totals = survey.totals()
    patches = []
    for kind in kinds:
        look = LOOKS[kind]
        label = f"{kind}  {format_size(totals[kind])}  {_percent(totals[kind], survey.size)}"
        edge = look.lines if look.hatch else "#999999"
        patches.append(
            Patch(
                facecolor=look.colour,
                edgecolor=edge,
                hatch=look.hatch or None,
                linewidth=0.5,
                label=label,
            )
        )
    if patches:
        figure.legend(
            handles=patches,
            loc="lower left",
            bbox_to_anchor=(left - 0.008, 0.01),
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=_INK,
            handlelength=1.4,
            handleheight=1.1,
            columnspacing=3.0,
        )


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return "< 0.1 %" if share < 0.1 else f"{share:.1f} %"
