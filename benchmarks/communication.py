"""Counts what a compiled program sends between devices, from the text of the program.

The contents of a loop are counted as often as it runs, if the compiler knows how often that is (as
for a loop over the devices of a ring), and otherwise once. Branches that run only where a particle
has to be replaced are counted separately.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{|true_computation=|false_computation=)([^},]+(?:, ?[^},]+)*)"
)
_LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALL = re.compile(r"(?: fusion| call)\(.*(?:calls|to_apply)=%?([\w.\-]+)")


class Traffic(NamedTuple):
    """Collectives of one device.

    Attributes:
        always: bytes of the results of those outside branches, by kind of collective.
        branches: bytes of the results of those inside branches, which may or may not run.
        rounds: number of collectives outside branches, by kind.
    """

    always: Counter[str]
    branches: Counter[str]
    rounds: Counter[str]


class _Sent(NamedTuple):
    kind: str
    size: int
    times: int
    is_in_branch: bool


def traffic(text: str) -> Traffic:
    """Count the collectives in the text of a compiled program, ``compiled.as_text()``."""
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = computations[match.group(1)] = []
            if line.startswith("ENTRY"):
                entry = match.group(1)
        elif computations:
            lines.append(line)
    counts = Traffic(Counter(), Counter(), Counter())
    for kind, size, times, is_in_branch in _walk(entry, 1, False, computations):
        if is_in_branch:
            counts.branches[kind] += times * size
        else:
            counts.always[kind] += times * size
            counts.rounds[kind] += times
    return counts


def _walk(
    name: str, times: int, is_in_branch: bool, computations: dict[str, list[str]]
) -> Iterator[_Sent]:
    for line in computations[name]:
        if match := _COLLECTIVE.search(line):
            yield _Sent(match.group(2), _size(match.group(1)), times, is_in_branch)
        for names in _BRANCHES.findall(line):
            for branch in names.split(","):
                yield from _walk(branch.strip().lstrip("%"), times, True, computations)
        if match := _LOOP.search(line):
            trips = _TRIPS.search(line)
            inside = times * int(trips.group(1)) if trips else times
            yield from _walk(match.group(1), inside, is_in_branch, computations)
        if match := _CALL.search(line):
            yield from _walk(match.group(1), times, is_in_branch, computations)


def _size(result: str) -> int:
    """Bytes of a shape, or of a tuple of them."""
    return sum(
        _BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
        for dtype, shape in _SHAPE.findall(result)
        if dtype in _BYTES
    )
