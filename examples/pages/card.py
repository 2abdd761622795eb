"""The card that other sites show beside a link to this one: logo, one sentence, digits, and the audit of a wrong sign."""

from typing import Any

import fnnet as fn

from .learn import Numbers
from .use import fault, fault_report

PAINTS = {"fail": "#ff7b72", "consequence": "#e3b341", "pass": "#7ee787"}


def card() -> Numbers:
    return {"digits": fn.datasets.mnist_subset().test[0][:12, ..., 0], **fault()}


def draw_card(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(12, 6.3)
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(630, 0))
    ax.set_axis_off()
    for x, y, color, tips in ((110, (70, 172), "white", 148), (170, (180, 78), "#ffb35c", 102)):
        up = tips < 120
        ax.plot([x, x], y, color=color, lw=11, solid_capstyle="round")
        ax.plot([x - 27, x, x + 27], [tips, 75 if up else 175, tips], color=color, lw=11, solid_capstyle="round",
                solid_joinstyle="round")  # fmt: skip
    ax.text(240, 126, "fnnet", fontsize=66, weight="bold", va="center")
    ax.text(82, 262, "Neural networks in JAX\nwhose backpropagation\nis written by hand,\nand audited.",
            fontsize=30, va="top", linespacing=1.35)  # fmt: skip
    for i, image in enumerate(numbers["digits"]):
        x, y = 640 + 84 * (i % 6), 64 + 84 * (i // 6)
        ax.imshow(image, cmap="gray", extent=(x, x + 74, y + 74, y), interpolation="bilinear", aspect="auto")
    ax.fill([640, 1134, 1134, 640], [262, 262, 560, 560], color="#16202b")
    row = fault_report().rows[0]
    said = f"layer {row.layer}, {row.equation}: {row.hint}"
    ax.text(664, 298, said, color=PAINTS["fail"], fontsize=13, va="center", weight="bold")
    of_layers = [(name, row) for name, row in numbers.items() if name[0].isdigit()][:7]
    for i, (name, (isolated, chained, verdict)) in enumerate(of_layers):
        said = ("pass", "consequence", "fail")[int(verdict)]
        for x, text, side in ((664, name.replace(" gradients", ""), "left"), (905, said, "left"),
                              (1112, f"{max(isolated, chained):.1e}", "right")):  # fmt: skip
            ax.text(x, 342 + 31 * i, text, family="monospace", fontsize=12.5, va="center", ha=side, color=PAINTS[said])
    ax.set(xlim=(0, 1200), ylim=(630, 0))
