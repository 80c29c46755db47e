"""How often a launch passes through its loops: counted in Triton's interpreter.

`TRITON_INTERPRET=1 python -m bench.passes` runs one head, and one window's station, of the shape
that is asked for, and counts the passes of every loop of the kernels by its line and by the lines
that call it. Inputs are random: logits have a standard deviation of one nat.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from bench.launches import ROOT, Shape, captured, in_interpreter
from bench.sass import Place

KERNELS = str(ROOT / "kernels")


@dataclass
class Passes:
    """Programs of all launches of one kernel with one set of constants, and passes in them."""

    name: str
    constants: dict[str, Any]
    programs: int = 0
    loops: Counter[Place] = field(default_factory=Counter)

    def a_program(self, place: Place) -> float | None:
        """Passes of a loop in the mean program; None where it was never entered by that way."""
        return self.loops[place] / self.programs if place in self.loops else None

    def differences(self, constants: dict[str, Any]) -> int:
        """How many constants are others."""
        names = self.constants.keys() | constants.keys()
        return sum(self.constants.get(n) != constants.get(n) for n in names)


#: Name under which rewritten kernels find the counter.
_COUNTER = "_bertgeom_pass"


@contextmanager
def counted_loops(counts: Counter[Place]) -> Iterator[None]:
    """Counts the passes of every loop of a kernel by its header and its callers.

    The interpreter rewrites the source of a kernel before it runs it; every loop gets a first
    statement that counts.
    """
    from triton.runtime import interpreter

    def with_counter(_: Any, node: Any) -> Any:
        call = ast.Call(func=ast.Name(id=_COUNTER, ctx=ast.Load()), args=[], keywords=[])
        statement = ast.copy_location(ast.Expr(value=ast.copy_location(call, node)), node)
        ast.copy_location(call.func, node)
        # The header alone gives the line: whatever spans more lines would move it.
        for new in (statement, call, call.func):
            new.end_lineno, new.end_col_offset = node.lineno, node.col_offset + 1
        node.body.insert(0, statement)
        return node

    class Counting(interpreter.ASTTransformer):
        def visit_For(self, node: Any) -> Any:
            return with_counter(self, self.generic_visit(node))

        def visit_While(self, node: Any) -> Any:
            return with_counter(self, self.generic_visit(node))

    def visited() -> None:
        frame = sys._getframe(1)
        counts[place_of(frame)] += 1

    setattr(builtins, _COUNTER, visited)
    before = interpreter.FunctionRewriter.ast_transformer
    interpreter.FunctionRewriter.ast_transformer = Counting()
    try:
        yield
    finally:
        interpreter.FunctionRewriter.ast_transformer = before
        delattr(builtins, _COUNTER)


def place_of(frame: FrameType | None) -> Place:
    """The line of a frame and the kernel lines that called it; launchers are not part of it."""
    found = []
    while frame is not None:
        file = os.path.realpath(frame.f_code.co_filename)
        if file.startswith(KERNELS):
            if not _is_kernel(frame):
                break
            found.append((file, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def _is_kernel(frame: FrameType) -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(frame.f_globals.get(frame.f_code.co_name), InterpretedFunction)


def count(shape: Shape) -> list[Passes]:
    """Passes of the launches of `bench.launches.parts`, of one window and one head."""
    import torch

    from bertgeom import kernels
    from bertgeom.variables import n_offset_side

    found: dict[str, Passes] = {}
    current: Counter[Place] = Counter()

    def settle() -> None:
        if names:
            found[names[-1]].loops.update(current)
        current.clear()

    names: list[str] = []

    def receive(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        settle()
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        constants = {k: v for k, v in given.items() if k.isupper()}
        grid = grid(given) if callable(grid) else grid
        key = code(kernel.fn.__name__, constants)
        entry = found.setdefault(key, Passes(kernel.fn.__name__, constants))
        n = 1
        for side in grid:
            n *= int(side)
        entry.programs += n
        names.append(key)

    torch.manual_seed(0)
    dtype = getattr(torch, shape.dtype)
    heads = [torch.randn(1, 1, shape.tokens, shape.head_dim).to(dtype) for _ in range(3)]
    x = torch.randn(1, shape.tokens, shape.hidden).to(dtype)
    special = torch.zeros(1, shape.tokens, dtype=torch.bool)
    with captured(receive, run=True), counted_loops(current), torch.no_grad():
        # Tier core passes through its loops as often as tier full.
        kernels.attention_stats(
            *heads,
            special=special,
            tier="full",
            n_offset_side=n_offset_side(shape.tokens),
            head_cones=True,
            impl="triton",
        )
        for angles in (False, True):
            kernels.statistics_of_stations([x], angles=[angles], impl="triton")
    settle()
    return list(found.values())


def code(name: str, constants: dict[str, Any]) -> str:
    """A kernel and its constants in words."""
    return json.dumps([name, constants], sort_keys=True, default=str)


def counted(shape: Shape) -> list[Passes]:
    """`count` in a process that interprets."""
    printed = in_interpreter("bench.passes", [json.dumps(asdict(shape))])

    def passes(row: dict[str, Any]) -> Passes:
        loops = Counter({tuple((f, int(n)) for f, n in place): k for place, k in row["loops"]})
        return Passes(row["name"], row["constants"], row["programs"], loops)

    return [passes(row) for row in json.loads(printed)]


def main(arguments: list[str] | None = None) -> int:
    """Prints passes as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.passes", description=__doc__)
    parser.add_argument("shape", nargs="?", default="{}", help="fields of a Shape as JSON")
    options = parser.parse_args(arguments)
    rows = count(Shape(**json.loads(options.shape)))
    shown = [vars(row) | {"loops": list(row.loops.items())} for row in rows]
    print(json.dumps(shown, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
