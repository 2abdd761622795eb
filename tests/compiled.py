"""The collectives of a compiled program, read from its HLO text."""

import itertools
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
COLLECTIVE = re.compile(rf" = (.*?) ({KINDS})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
CALLED = re.compile(r"\b(body|condition|calls|to_apply|\w+_computations?)=(?:%([\w.\-]+)|\{([^}]*)\})")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}")


class Found(NamedTuple):
    """A collective.

    Attributes:
        kind: such as "all-reduce"; that of an asynchronous one is the same, counted where it starts.
        bytes: of its result on one device, all arrays of a tuple together.
        arrays: how many arrays it takes together.
        in_loop: whether it is in the body of a loop, or in what that calls.
        times: how often it is run, by the trip counts of the loops around it, as far as the compiler knows them.
        groups: the devices that take part together.
    """

    kind: str
    bytes: int
    arrays: int
    in_loop: bool
    times: int
    groups: frozenset[frozenset[int]]


def collectives(text: str) -> list[Found]:
    """All of a program's, from ``compiled.as_text()``."""
    inside, found = "", []
    callers: dict[str, list[tuple[str, bool, int]]] = {}
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            inside = header[2]
            continue
        for role, name, names in CALLED.findall(line):
            for called in [name] if name else re.findall(r"[\w.\-]+", names):
                trips = TRIPS.search(line)
                is_body = role == "body"
                callers.setdefault(called, []).append((inside, is_body, int(trips[1]) if trips and is_body else 1))
        if match := COLLECTIVE.search(line):
            found.append((inside, line, match))
    return [_found(line, match, *_loops(inside, callers)) for inside, line, match in found]


def _loops(inside: str, callers: dict) -> tuple[bool, int]:
    """Whether a computation is run by a loop, and how often it is run."""
    in_loop, times = False, 0
    for caller, is_body, trips in callers.get(inside, []):
        further, runs = _loops(caller, callers)
        in_loop, times = in_loop or is_body or further, times + trips * runs
    return in_loop, times if inside in callers else 1


def _found(line: str, match: re.Match, in_loop: bool, times: int) -> Found:
    shapes, kind, start = match.groups()
    arrays = ARRAY.findall(shapes)
    if start and kind != "all-reduce":  # (operands, results, ...)
        arrays = [array for array in arrays if array[0] != "u32" or array[1]]
        arrays = arrays[len(arrays) // 2 :]
    size = sum(_item_bytes(dtype) * math.prod(map(int, filter(None, shape.split(",")))) for dtype, shape in arrays)
    return Found(kind, size, len(arrays), in_loop, times, _groups(line))


def _item_bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else max(1, int(re.findall(r"\d+", dtype)[0]) // 8)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(text: str) -> np.ndarray:
    """Of ``[shape]<=[axes]T(order)``."""
    shape, axes, order = IOTA.match(text).groups()
    ids = np.arange(math.prod(_numbers(axes or shape))).reshape(_numbers(axes or shape))
    ids = ids.transpose(_numbers(order)) if order else ids
    return ids.reshape(_numbers(shape)) if axes else ids


def _groups(line: str) -> frozenset[frozenset[int]]:
    if match := MESH.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        sizes = [int(n) for n in axes.values()]
        ids = (_iota(match[2]) if match[2] else np.arange(math.prod(sizes))).reshape(sizes)
        over = [list(axes).index(name) for name in re.findall(r"'(\w+)'", match[3])]
        rows = np.moveaxis(ids, over, range(-len(over), 0)).reshape(-1, math.prod(sizes[i] for i in over))
    elif match := re.search(r"replica_groups=(\[\S+?\]\S*?),? ", line):
        rows = _iota(match[1])
    else:
        listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
        rows = [_numbers(row) for row in re.findall(r"\{([\d,]+)\}", listed[1])]
    return frozenset(frozenset(int(i) for i in row) for row in rows)


def along(sizes: dict[str, int], *axes: str) -> frozenset[frozenset[int]]:
    """The groups of devices that differ by their place along these axes of a mesh, whose devices are in order."""
    names = list(sizes)
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    rows = np.moveaxis(ids, [names.index(axis) for axis in axes], range(-len(axes), 0))
    return frozenset(frozenset(int(i) for i in row) for row in rows.reshape(-1, math.prod(sizes[a] for a in axes)))


def totals(found: list[Found], sizes: dict[str, int]) -> dict[tuple[str, str], tuple[int, int]]:
    """(how often, bytes in all) of each kind over each axis, or each several axes, of a mesh; "?" over other groups."""
    names = {along(sizes, *axes): ",".join(axes) for n in (2, 1) for axes in itertools.combinations(sizes, n)}
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for one in found:
        key = one.kind, names.get(one.groups, "?")
        count, size = sums.get(key, (0, 0))
        sums[key] = count + one.times, size + one.times * one.bytes
    return sums
