"""Manual against autodiff: which equation of which layer is wrong, for which leaf, where, and what kind of mistake it is.

What people call stands in ``network`` (networks and layers) and ``audit`` (everybody's functions).

- Both sides: ``sides``, ``whole``, ``layer``, ``composed``, ``elsewhere`` of networks; ``forms``, ``function``, ``points`` of
  functions; ``foreign`` of NumPy and PyTorch; ``devices`` of what lies on a mesh.
- Judges: ``rules`` (a program without its hand-written rules), ``differences``, ``measured``, ``central``, ``decimals``.
- Verdicts: ``verdicts``; what explains a failure: ``mistakes``, ``network_mistakes``, ``function_mistakes``, ``planted``,
  ``ways``, ``formulas``; ``rows`` puts these together, ``report`` shows them, ``command`` is the shell's.
"""

from .audit import assert_gradients, audit, check_gradient, check_vjp
from .network import check_layer, compare_gradients
from .report import Report, Row

__all__ = [
    "Report",
    "Row",
    "assert_gradients",
    "audit",
    "check_gradient",
    "check_layer",
    "check_vjp",
    "compare_gradients",
]
