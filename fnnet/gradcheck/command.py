"""The audit from the shell: ``python -m fnnet.audit module:function --like "f32[4,8]" ...``

It exits with 0 where the derivatives are right, with 1 where they are wrong or nothing was tested, and with 2, after a
sentence, for what cannot be audited.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .audit import audit
from .foreign import is_torch
from .report import Report

DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "c64": "complex64", "c128": "complex128",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u32": "uint32", "u8": "uint8", "bool": "bool",
}  # fmt: skip
WIDE = ("f64", "i64", "c128")
ARRAY = re.compile(r"\s*(key|" + "|".join(DTYPES) + r")\s*\[([\d,\s]*)\]\s*(?:(<|>)\s*(\d+))?\s*")
EXAMPLES = """
Arguments, in order, each with --like:
  "f32[4,8]"            standard normal numbers of this dtype and shape; "f32[4] > 0" positive ones
  "i32[4] < 10"         whole numbers below 10 (below 2 without a bound); "bool[4]", "key[]" as well
  '{"w": "f32[8,3]"}'   dicts, lists and tuples of such
  3, '"tanh"', True     Python values
"""


class Usage(Exception):
    """What was asked cannot be done; the text is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.x64 or any(name in "".join(given.like) for name in WIDE):
        jax.config.update("jax_enable_x64", True)
    try:
        f, reference, intended = map(loaded, (given.rule, given.reference, given.intended))
        args, *points = (_drawn(given, f, given.seed + i) for i in range(1 + (given.points or 0)))
        report = audit(
            f,
            *args,
            reference=reference,
            intended=intended,
            points=None if given.points is None else points,
            static_argnums=tuple(given.static),
        )
    except (Usage, ValueError) as error:
        print(f"fnnet.audit: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever the function raises
        traceback.print_exc()
        print(f"fnnet.audit: {given.rule} raised {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return _shown(report, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fnnet.audit",
        description="Say whether a hand-written derivative is right, or which argument's is wrong, where, and why.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of = "MODULE:NAME"
    parser.add_argument(
        "rule", metavar=of, help="a function with a rule, or a pair MODULE:FORWARD,BACKWARD; FILE.py:NAME"
    )
    parser.add_argument("--like", action="append", default=[], metavar="ARG", help="an argument, see below")
    parser.add_argument(
        "--reference", metavar=of, help="the same function written plainly, to be differentiated instead"
    )
    parser.add_argument(
        "--intended", metavar=of, help="another function, which the rule is meant to be the derivative of"
    )
    parser.add_argument(
        "--static", action="append", type=int, default=[], metavar="N", help="the place of a static argument"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers")
    parser.add_argument("--points", type=int, metavar="N", help="how many further draws to audit it at; 0 for none")
    parser.add_argument("--x64", action="store_true", help="float64 in JAX; as any f64, i64 or c128 does")
    parser.add_argument("--json", metavar="FILE", help='write the report as JSON, "-" to standard output')
    parser.add_argument("--markdown", metavar="FILE", help='write the table in Markdown, "-" to standard output')
    return parser


def loaded(name: str | None) -> Any:
    """What a "module:name" or "file.py:name" names, or a pair of "module:one,other".

    Raises:
        Usage: where there is no such thing.
    """
    if name is None:
        return None
    place, colon, names = name.rpartition(":")
    if not colon or not names:
        raise Usage(f'expected "module:function", got {name!r}')
    module = _module(place)
    parts = [_attribute(module, part) for part in names.split(",")]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _module(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None:
            raise ImportError(f"no module at {place}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a module raises that is imported
        raise Usage(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _attribute(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            public = ", ".join(
                name for name in vars(module) if not name.startswith("_") and callable(vars(module)[name])
            )
            raise Usage(f"{module.__name__} has no {path}; it has {public or 'no functions'}")
        found = getattr(found, part)
    return found


def _drawn(given: argparse.Namespace, f: Any, seed: int) -> tuple:
    """The arguments, with random numbers of their own for each seed."""
    seeds = iter(np.random.SeedSequence(seed).spawn(1000))
    args = tuple(_argument(text, seeds) for text in given.like)
    if is_torch(f) or any(is_torch(one) for one in (f if isinstance(f, tuple) else ())):
        torch = sys.modules["torch"]
        return jax.tree.map(lambda a: torch.as_tensor(np.array(a)) if isinstance(a, np.ndarray) else a, args)
    return args


def _argument(text: str, seeds: Iterator[Any]) -> Any:
    if ARRAY.fullmatch(text):
        return _array(text, seeds)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        known = ", ".join(DTYPES)
        raise Usage(
            f"--like {text!r} is neither an array such as f32[4,8] (of {known}, key) nor a Python value"
        ) from error
    return jax.tree.map(lambda a: _array(a, seeds) if isinstance(a, str) and ARRAY.fullmatch(a) else a, value)


def _array(text: str, seeds: Iterator[Any]) -> Any:
    found = ARRAY.fullmatch(text)
    assert found is not None
    dtype, shape, sign, bound = found.groups()
    shape = tuple(int(n) for n in shape.split(",") if n.strip())
    draw = np.random.default_rng(next(seeds))
    if dtype == "key":
        return jax.random.split(jax.random.key(int(draw.integers(2**31))), shape) if shape else jax.random.key(0)
    dtype = jnp.dtype(DTYPES[dtype])
    if dtype.kind in "iub":
        if sign == ">":
            raise Usage(f"--like {text!r}: whole numbers have an upper bound, i32[4] < 10")
        return np.asarray(draw.integers(int(bound or 2), size=shape)).astype(dtype)
    if sign == "<" or (bound or "0") != "0":
        raise Usage(f"--like {text!r}: real numbers are bounded by > 0 only")
    numbers = draw.standard_normal(shape)
    if dtype.kind == "c":
        numbers = numbers + 1j * draw.standard_normal(shape)
    return np.asarray(np.exp(numbers / 2) if sign else numbers).astype(dtype)


def as_json(report: Report) -> str:
    """The report as JSON; null for NaN, "inf" for infinity."""

    def plain(a: Any) -> Any:
        if isinstance(a, float) and not math.isfinite(a):
            return None if math.isnan(a) else str(a)
        if isinstance(a, dict):
            return {key: plain(b) for key, b in a.items()}
        return [plain(b) for b in a] if isinstance(a, list | tuple) else a

    rows = [{**dataclasses.asdict(row), "note": row.note} for row in report.rows]
    return json.dumps(
        plain({"ok": _passes(report), "dtype": report.dtype, "judge": report.judge, "rows": rows}), indent=1
    )


def _passes(report: Report) -> bool:
    try:
        report.raise_if_failed()
    except AssertionError:
        return False
    return True


def _shown(report: Report, given: argparse.Namespace) -> int:
    forms: dict[str | None, Callable[[], str]] = {
        given.json: lambda: as_json(report),
        given.markdown: report.to_markdown,
    }
    for file, form in forms.items():
        if file not in (None, "-"):
            Path(file).write_text(form() + "\n", encoding="utf-8")
    passes = _passes(report)
    print(forms["-"]() if "-" in forms else report if passes else report.full())
    return 0 if passes else 1
