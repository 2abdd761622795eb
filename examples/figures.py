"""The pictures of docs/, each on white and for a dark page, with the numbers they show, and the card for links to the site.

    python examples/figures.py                               # all, into docs/pictures: about two minutes
    python examples/figures.py saturation vanishing          # some
    python examples/figures.py --output output

Each figure is two functions in examples/pages: NAME computes its numbers, which are written to NAME.json, draw_NAME draws
them. Both are deterministic; tests/test_figures.py compares the numbers with those that are committed.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pages import card, guides, learn, scripts, use

Numbers = dict[str, Any]
LIGHT, DARK = ["#1f5f99", "#c25700", "#3d7d3d", "#7b4f9d"], ["#7db8ec", "#ff9f45", "#8fd18f", "#c9a6e8"]
SCHEMES = {
    ".svg": {"ink": "#222222", "ground": "white", "colours": LIGHT},
    "-dark.svg": {"ink": "#dddddd", "ground": "none", "colours": DARK},
}
CARD = {".png": {"ink": "#ffffff", "ground": "#10365b", "colours": DARK}}
FIGURES: dict[str, tuple[Callable[[], Numbers], Callable[[Numbers, Any], None]]] = {
    name: (compute, getattr(module, f"draw_{name}"))
    for module in (learn, guides, use, scripts, card)
    for name, compute in vars(module).items()
    if hasattr(module, f"draw_{name}")
}


def rounded(values: Any) -> list:
    """Three digits are more than a picture shows."""
    return [rounded(v) if np.ndim(v) else float(f"{float(v):.3g}") for v in np.asarray(values)]


def write(name: str, folder: Path) -> None:
    """NAME.json, NAME.svg and NAME-dark.svg; of the card NAME.png."""
    numbers = {key: rounded(values) for key, values in FIGURES[name][0]().items()}
    (folder / f"{name}.json").write_text(json.dumps(numbers, ensure_ascii=False) + "\n")
    drawn(name, numbers, folder)


def slim(svg: str) -> str:
    """Without comments, indents and what lies below a tenth of a point: half of the file."""
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"(?<![\d.])(\d*[1-9]\d*\.\d)\d+", r"\1", re.sub(r"\n\s*", "\n", svg))


def drawn(name: str, numbers: Numbers, folder: Path) -> None:
    """The pictures of the numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for suffix, of in (CARD if name == "card" else SCHEMES).items():
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style = {
            **dict.fromkeys(inked, of["ink"]),
            "axes.facecolor": "none",
            "axes.prop_cycle": plt.cycler(color=of["colours"]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "font.size": 11,
            "legend.frameon": False,
            "svg.hashsalt": name,
        }
        with plt.rc_context(style):
            figure = plt.figure(figsize=(5.6, 2.9), layout="constrained")
            FIGURES[name][1](numbers, figure)
            path = folder / f"{name}{suffix}"
            figure.savefig(path, facecolor=of["ground"], metadata={"Date": None} if "svg" in suffix else None)
            if path.suffix == ".svg":
                path.write_text(slim(path.read_text()))
            plt.close(figure)
            print(f"wrote {path}")


def main(names: list[str], output: str | Path) -> None:
    Path(output).mkdir(parents=True, exist_ok=True)
    left = []
    for name in names or FIGURES:
        try:
            write(name, Path(output))
        except ModuleNotFoundError as missing:
            left.append(f'{name} needs {missing.name}; the extra "tests" brings it: pip install -e ".[tests]"')
        except FileNotFoundError as missing:
            left.append(f"{name} needs {missing}")
    if left:
        sys.exit("\n".join(left))


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*FIGURES, []], help=", ".join(FIGURES))
    parser.add_argument("--output", default=Path(__file__).parent.parent / "docs" / "pictures", metavar="FOLDER")
    main(**vars(parser.parse_args()))
