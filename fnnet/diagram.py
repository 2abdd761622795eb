"""A network as a diagram: activations go down, errors come back up. Part of `fnnet.plots`."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .layers import Identity, Layer, Network, Parallel, Repeat, Tied
from .layers._composite import is_walked
from .layers._shared import Around
from .summary import LayerSummary, summary

WIDTH, HEIGHT, GAP, MARGIN = 3.4, 0.72, 0.72, 0.3
DOWN, UP = "C0", "C1"


@dataclass
class Piece:
    """A part of the diagram, its top at (0, 0) and its wire in the middle."""

    layer: Layer
    row: LayerSummary | None
    place: tuple[int, ...]
    inside: list["Piece"] = field(default_factory=list)
    kind: str = "layer"
    title: str = ""
    width: float = WIDTH
    height: float = HEIGHT


def piece(net: Layer, rows: dict[str, LayerSummary], place: tuple[int, ...] = ()) -> Piece:
    """The net's piece with those of its parts, measured from the inside out."""
    row = rows.get(".".join(map(str, place or (0,))))
    found = Piece(net, row, place)
    if not is_walked(net):
        found.width = 0.8 if isinstance(net, Identity) else WIDTH
        return found
    inner = _wired(net)
    parts = net.layers[:1] if isinstance(inner, Repeat) else net.layers  # pyright: ignore[reportAttributeAccessIssue]
    found.inside = [piece(part, rows, (*place, i)) for i, part in enumerate(parts)]
    found.title = _title(net, place)
    widths, heights = ([getattr(p, name) for p in found.inside] for name in ("width", "height"))
    if isinstance(inner, Parallel):
        found.kind = "parallel"
        found.width, found.height = sum(widths) + GAP * (len(widths) - 1), max(heights) + 2 * GAP
    elif isinstance(inner, Network | Repeat):
        found.kind = "row"
        found.width, found.height = max(widths), sum(heights) + GAP * (len(heights) - 1)
    else:
        found.kind = "others"
        found.width, found.height = max(widths), sum(heights) + MARGIN * (len(heights) - 1)
    if found.title:
        found.width += 2 * MARGIN
        found.height += 2 * MARGIN + 0.3
    return found


def _title(net: Layer, place: tuple[int, ...]) -> str:
    """What is written on the frame around a composite; no frame around a plain network or its branches."""
    if isinstance(net, Network | Parallel):
        return ""
    if isinstance(net, Repeat):
        return f"× {net.n}"
    if isinstance(net, Tied):
        return "" if not place else "Tied"
    return net._title


class Drawing:
    """Draws pieces into axes whose unit is the height of a line of text, roughly."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.ink: Any = ax.xaxis.label.get_color()
        self.boxes: dict[tuple[int, ...], tuple[float, float]] = {}

    def arrow(self, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
        self.ax.add_patch(FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=color, lw=1.2, shrinkA=0, shrinkB=0
        ))  # fmt: skip

    def wire(self, x: float, top: float, bottom: float, text: str = "") -> None:
        """Between two pieces: a on its way down, the error on its way up."""
        self.arrow((x - 0.11, top), (x - 0.11, bottom), DOWN)
        self.arrow((x + 0.11, bottom), (x + 0.11, top), UP)
        if text:
            self.ax.text(x + 0.26, (top + bottom) / 2, text, va="center", ha="left", fontsize=7.5, color=self.ink)

    def line(self, points: list[tuple[float, float]], color: str) -> None:
        xs, ys = zip(*points, strict=True)
        self.ax.plot(xs, ys, color=color, lw=1.2, solid_joinstyle="round")

    def draw(self, p: Piece, x: float, y: float) -> None:
        """A piece with its middle at x and its top at y."""
        if p.title:
            self.frame(x, y, p)
            x, y = x, y - MARGIN - 0.3
        getattr(self, p.kind)(p, x, y)

    def frame(self, x: float, y: float, p: Piece) -> None:
        box = FancyBboxPatch(
            (x - p.width / 2, y - p.height), p.width, p.height, boxstyle="round,pad=0,rounding_size=0.15",
            fill=False, ec=self.ink, ls=":", lw=1,
        )  # fmt: skip
        self.ax.add_patch(box)
        self.ax.text(
            x - p.width / 2 + 0.15, y - 0.15, p.title, va="top", ha="left", fontsize=8, style="italic", color=self.ink
        )
        middle = y - MARGIN - 0.3
        self.wire(x, y, middle)
        self.wire(x, y - p.height + MARGIN, y - p.height)

    def layer(self, p: Piece, x: float, y: float) -> None:
        row = p.row
        assert row is not None
        if isinstance(row.layer, Identity):
            self.wire(x, y, y - HEIGHT)
            return
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.12",
            fc=(*to_rgb("C0"), 0.12), ec=self.ink, lw=1,
        )  # fmt: skip
        self.ax.add_patch(box)
        self.boxes[p.place] = (x, y)
        activation = getattr(getattr(row.layer, "layer", row.layer), "activation", None)
        name = row.name + (f", {activation!r}" if activation is not None else "")
        count = f"{row.parameters:,} parameters" if row.parameters else "no parameters"
        self.ax.text(x, y - 0.24, name, va="center", ha="center", fontsize=9, color=self.ink)
        self.ax.text(x, y - 0.51, count, va="center", ha="center", fontsize=7, color=self.ink, alpha=0.75)

    def row(self, p: Piece, x: float, y: float) -> None:
        for i, part in enumerate(p.inside):
            if i:
                above = p.inside[i - 1].row
                assert above is not None
                self.wire(x, y, y - GAP, _written(above.output_shape))
                y -= GAP
            self.draw(part, x, y)
            y -= part.height

    def others(self, p: Piece, x: float, y: float) -> None:
        """Parts whose wiring is the composite's own."""
        for part in p.inside:
            self.draw(part, x, y)
            y -= part.height + MARGIN

    def parallel(self, p: Piece, x: float, y: float) -> None:
        """Branches beside each other, between where they part and where they are joined."""
        join = _wired(p.layer).join
        width = sum(part.width for part in p.inside) + GAP * (len(p.inside) - 1)
        tall = max(part.height for part in p.inside)
        bottom, left = y - tall - 2 * GAP, x - width / 2
        for part in p.inside:
            middle = left + part.width / 2
            for shift, color in ((-0.11, DOWN), (0.11, UP)):
                self.line([(x + shift, y), (x + shift, y - GAP / 2), (middle + shift, y - GAP / 2)], color)
                self.line(
                    [(middle + shift, bottom + GAP / 2), (x + shift, bottom + GAP / 2), (x + shift, bottom)], color
                )
            self.wire(middle, y - GAP / 2, y - GAP)
            self.draw(part, middle, y - GAP)
            self.wire(middle, y - GAP - part.height, bottom + GAP / 2)
            left += part.width + GAP
        sign = {"add": "+", "concatenate": "‖"}.get(join.name) or join.name
        box = "circle,pad=0.18" if len(sign) == 1 else "round,pad=0.25"
        self.ax.text(
            x, bottom + GAP / 2, sign, va="center", ha="center", fontsize=10, color=self.ink,
            bbox={"boxstyle": box, "fc": self.ax.get_facecolor(), "ec": self.ink},
        )  # fmt: skip

    def tie(self, places: list[tuple[int, ...]], leaf: str, right: float) -> None:
        """A dashed line, right of everything, between the layers that share an array."""
        ends = [self.boxes[place] for place in places if place in self.boxes]
        for (x, y), (x2, y2) in itertools.pairwise(ends):
            y, y2 = y - HEIGHT / 2, y2 - HEIGHT / 2
            points = [(x + WIDTH / 2, y), (right, y), (right, y2), (x2 + WIDTH / 2, y2)]
            self.ax.plot(*zip(*points, strict=True), color="C2", ls="--", lw=1.3)
            self.ax.text(right + 0.12, (y + y2) / 2, f"one {leaf}", color="C2", fontsize=8, va="center", ha="left")


def _wired(net: Any) -> Any:
    """The composite whose wiring a net has: itself, or what it is around."""
    while isinstance(net, Around):
        net = net.net
    return net


def _written(shape: tuple[int, ...]) -> str:
    """The shape of one example."""
    return "×".join(map(str, shape)) or "1"


def _pieces(p: Piece) -> Iterator[Piece]:
    yield p
    for part in p.inside:
        yield from _pieces(part)


def _place(net: Any, place: tuple[int, ...], path: list[str]) -> tuple[int, ...]:
    """The place of the layer at a path of `Tied`, whose entries may count from the end and step over what is no part."""
    for entry in path:
        if not entry.lstrip("-").isdigit():
            continue
        i = range(len(net.layers))[int(entry)]
        net, place = net.layers[i], (*place, i)
    return place


def network(net: Layer, input_shape: tuple[int, ...], *, ax: Axes | None = None) -> Axes:
    """A network as a diagram, from the input above to the output below: a box for each layer with its number of parameters,
    branches beside each other between where they part and where they are joined (+ or ‖), a dotted frame around what is
    repeated (× n) or otherwise wrapped, a dashed line between layers that share an array. Blue arrows are activations on
    their way down, with one example's shape; orange ones the errors on their way up: between two layers a^l and δ^l.

    Args:
        net: any layer.
        input_shape: the shape of one example, such as (28, 28, 1).
        ax: where to draw; a new figure of the right size by default.

    Raises:
        LayerError: where a layer cannot take what comes to it.
    """
    found = summary(net, input_shape)
    whole = piece(net, {row.name.split()[0]: row for row in found.rows})
    height = whole.height + 2 * (GAP + 0.35)
    if ax is None:
        size = max(3.2, 0.62 * whole.width + 1.2), 0.62 * height + 0.5
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    drawing = Drawing(ax)
    text = {"va": "center", "ha": "center", "fontsize": 9, "color": drawing.ink}
    ax.text(0, 0.2, "$x$", **text)
    ax.text(-0.3, -GAP / 2, "$a$", **{**text, "color": DOWN})
    ax.text(-0.65, -GAP / 2, r"$\delta$", **{**text, "color": UP})
    drawing.wire(0, 0, -GAP, _written(input_shape))
    drawing.draw(whole, 0, -GAP)
    end = -GAP - whole.height
    drawing.wire(0, end, end - GAP, _written(net.output_shape(input_shape)))
    ax.text(0, end - GAP - 0.2, "cost", **text)
    for part in _pieces(whole):
        tied: Any = part.layer
        if isinstance(tied, Tied):
            paths = [path.split(".") for path in tied.places]
            drawing.tie(
                [_place(tied.net, part.place, path[:-1]) for path in paths], paths[0][-1], whole.width / 2 + 0.4
            )
    ax.set_xlim(-whole.width / 2 - 0.4, whole.width / 2 + 1.4)
    ax.set_ylim(end - GAP - 0.5, 0.5)
    ax.set_aspect("equal")
    ax.axis("off")
    size = f"{found.parameters:,} parameters"
    ax.set_title(size, fontsize=9)
    return ax
