"""What a compiled program sends between devices, counted from its text.

Loops count as often as they run, where the compiler knows how often that is (a loop over the
devices of a ring, for example), else once. Branches that run only where a particle has to be
replaced are counted apart.
"""

import re
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


class Traffic(NamedTuple):
    """Bytes of the results of collectives on one device.

    Attributes:
        always: by kind of collective.
        branches: those inside branches, which may or may not run.
    """

    always: dict[str, int]
    branches: dict[str, int]


def traffic(text: str) -> Traffic:
    """Count the collectives in the text of a compiled program, ``compiled.as_text()``."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            current = match.group(1)
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current:
            computations[current].append(line)
    always, branches = dict.fromkeys(COLLECTIVES, 0), dict.fromkeys(COLLECTIVES, 0)
    _walk(entry, 1, computations, always, branches)
    return Traffic(always, branches)


def _walk(
    name: str,
    times: int,
    computations: dict[str, list[str]],
    total: dict[str, int],
    branches: dict[str, int],
) -> None:
    for line in computations.get(name, []):
        kind = next((k for k in COLLECTIVES if re.search(rf" {k}(-start)?\(", line)), None)
        if kind is not None:
            total[kind] += times * _result_bytes(line, kind)
        for inner in re.findall(
            r"(?:branch_computations=\{|true_computation=|false_computation=)"
            r"([^},]+(?:, ?[^},]+)*)",
            line,
        ):
            for branch in inner.split(","):
                _walk(branch.strip().lstrip("%"), times, computations, branches, branches)
        loop = re.search(r" while\(.*body=%?([\w.\-]+)", line)
        if loop:
            count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            trips = int(count.group(1)) if count else 1
            _walk(loop.group(1), times * trips, computations, total, branches)
        called = re.search(r"(?: fusion| call)\(.*(?:calls|to_apply)=%?([\w.\-]+)", line)
        if called:
            _walk(called.group(1), times, computations, total, branches)


def _result_bytes(line: str, kind: str) -> int:
    result = line.split("=", 1)[1].split(f" {kind}")[0]
    sizes = [
        _BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
        for dtype, shape in _SHAPE.findall(result)
        if dtype in _BYTES
    ]
    return sum(sizes)
