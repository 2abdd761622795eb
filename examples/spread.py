"""How the examples beside this file write what several seeds gave."""

import numpy as np


def spread(values, digits=2):
    """Mean ± standard deviation, the latter only of two or more."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"
