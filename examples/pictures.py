"""How the examples save a picture; where matplotlib is not installed, they say what to install and go on."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """``matplotlib.pyplot``, set to draw without a screen; None, and a line that says so, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no picture, since matplotlib is not installed: pip install 'fnnet[examples]'")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path, dpi: int = 120) -> None:
    """Write the figure to a file, whose folder is made where it is missing, and close it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    print(f"wrote {path}")
