"""Machine code of a kernel: its loops, where each stands in the source, and what a pass issues.

`nvdisasm -gi` writes above every instruction the source line that it comes from, and the calls
that line was inlined through. A loop is what lies between a branch backwards and its target; the
branch carries the line of the loop's header.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

#: Instructions of the unit that takes a warp eight cycles: exp2, log2, roots, reciprocals, most
#: conversions, counts of bits. F2FP and I2FP are none of them.
XU = re.compile(r"(MUFU|F2I|I2F|F2F|FRND|POPC|FLO|BREV)(\.|$)")
_WGMMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)")
_MMA = re.compile(r"HMMA\.(16)(8)(\d+)")

#: Source lines of a place, the innermost first: (file, line).
Place = tuple[tuple[str, int], ...]


@dataclass
class Pass:
    """Instructions that one warp issues: in one pass of a loop, or once, loops inside left out.

    Attributes:
        issued: all of them.
        xu: those of `XU`, and exp2 among them.
        flop: of the tensor cores, for one warp.
    """

    issued: int = 0
    xu: int = 0
    exp2: int = 0
    flop: float = 0.0

    def add(self, instruction: str) -> None:
        """Counts one instruction."""
        words = instruction.split()
        name = words[1] if words[0].startswith("@") else words[0]
        self.issued += 1
        self.xu += bool(XU.match(name))
        self.exp2 += name.startswith("MUFU.EX2")
        if found := _WGMMA.match(name):
            m, n, k = map(int, found.groups())
            # One instruction in each of four warps does one product.
            self.flop += 2.0 * m * n * k / 4
        elif found := _MMA.match(name):
            m, n, k = map(int, found.groups())
            self.flop += 2.0 * m * n * k


@dataclass
class Loop:
    """A loop of the machine code.

    Attributes:
        place: of its header.
        inner: instructions of one pass, without the loops inside of it.
        depth: 0 for an outermost loop.
        around: index of the loop that it lies in, None for an outermost one.
    """

    place: Place
    inner: Pass = field(default_factory=Pass)
    depth: int = 0
    around: int | None = None


@dataclass
class Code:
    """A kernel: what is issued once, and its loops."""

    once: Pass
    loops: list[Loop]


def disassembled(cubin: bytes) -> str:
    """What `nvdisasm -gi` prints, from the copy that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-gi", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(text: str) -> Code:
    """The loops of a disassembly."""
    instructions: list[tuple[str, Place]] = []
    labels: dict[str, int] = {}
    place: list[tuple[str, int]] = []
    fresh = True
    for line in text.splitlines():
        if found := re.match(r'\s*//## File "([^"]+)", line (\d+)', line):
            place = (
                [*place, (found[1], int(found[2]))] if not fresh else [(found[1], int(found[2]))]
            )
            fresh = False
        elif found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append((found[1], tuple(place)))
            fresh = True
    spans = []
    for i, (text_, where) in enumerate(instructions):
        target = re.search(r"\bBRA\b.*\((\.L_x_\d+)\)", text_)
        first = labels.get(target[1], i) if target else i
        # The last instruction of every kernel branches to itself.
        if first < i:
            spans.append((first, i, header(where)))
    # The smallest loop around an instruction owns it.
    spans.sort(key=lambda span: span[1] - span[0])
    code = Code(Pass(), [Loop(where) for _, _, where in spans])
    for i, (text_, _) in enumerate(instructions):
        owner = next((k for k, (a, b, _) in enumerate(spans) if a <= i <= b), None)
        (code.once if owner is None else code.loops[owner].inner).add(text_)
    for k, (a, b, _) in enumerate(spans):
        around = [j for j, (c, d, _) in enumerate(spans) if j > k and c <= a and b <= d]
        code.loops[k].depth = len(around)
        code.loops[k].around = around[0] if around else None
    return code


def header(place: Place) -> Place:
    """A place inside of a loop, moved to the loop's first line."""
    if not place:
        return place
    file, line = place[0]
    around = [first for first, last in loops_of(file) if first <= line <= last]
    return ((file, max(around)), *place[1:]) if around else place


@cache
def loops_of(file: str) -> tuple[tuple[int, int], ...]:
    """First and last line of every loop of a source file."""
    tree = ast.parse(Path(file).read_text())
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.For | ast.While)
    )
