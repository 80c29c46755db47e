"""What the compiler made of every shipped Triton kernel, without a GPU.

`python -m bench.static` compiles each configuration in the `SHIPPED` lists for sm_80 and sm_90
and prints registers, spills, shared memory, tensor-core instructions and the instructions of every
loop; `--json` for programs. Strides are declared as multiples of 16, as they are in a run.

`--model` computes how long every launch of a layer takes, and its ratio to bare attention and to
the bare forward (`bench.model`); `--markdown` prints the tables of the GPU's README.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: Modules with a `SHIPPED` list. Absolute names under bertgeom: from the checkout's root, a bare
#: `kernels` would be the folder, or somebody else's package.
MODULES = (
    "bertgeom.kernels.attention_stats.gpu.run",
    "bertgeom.kernels.cone_angles.gpu",
    "bertgeom.kernels.stations.gpu.run",
)
ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Resources:
    """What one configuration uses on one architecture.

    Attributes:
        name: key in its `SHIPPED` list.
        architecture: compute capability times ten.
        registers: per thread.
        spilled: bytes per thread in local memory (stack and local); 0 where nothing spills.
        shared: bytes of shared memory per program.
        wgmma, mma_sync: instructions in the PTX.
        warps, stages: as launched.
        loops: machine instructions of every loop, with those of the loops inside it, in order.
        dots: whether the kernel multiplies matrices.
        reason: why it may do so without wgmma on sm_90; None where it may not.
    """

    name: str
    architecture: int
    registers: int
    spilled: int
    shared: int
    wgmma: int
    mma_sync: int
    warps: int
    stages: int
    loops: tuple[int, ...]
    dots: bool
    reason: str | None

    @property
    def fault(self) -> str | None:
        """What is wrong with it on sm_90, None for nothing."""
        if self.architecture < 90:
            return None
        if self.spilled:
            return f"spills {self.spilled} bytes per thread"
        if self.dots and not self.wgmma and self.reason is None:
            return "multiplies matrices without wgmma and declares no reason"
        return None


def shipped(modules: Iterable[str] = MODULES) -> dict[str, Any]:
    """All configurations by name; a module that does not exist ships none."""
    found: dict[str, Any] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        found |= getattr(module, "SHIPPED", {})
    return found


def measure(name: str, architecture: int) -> Resources:
    """Compiles one configuration and reads what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    entry = shipped()[name]
    names = entry.kernel.arg_names
    signature = {n: entry.signature.get(n, "constexpr") for n in names}
    source = ASTSource(
        fn=entry.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in entry.constexprs.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned(entry)},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": entry.num_warps,
            "num_stages": entry.num_stages,
            "enable_fp_fusion": True,
        },
    )
    used = resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Resources(
        name=name,
        architecture=architecture,
        registers=used["REG"],
        spilled=used["STACK"] + used["LOCAL"],
        shared=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        mma_sync=len(re.findall(r"\bmma\.sync", ptx)),
        warps=entry.num_warps,
        stages=entry.num_stages,
        loops=loop_sizes(_cuobjdump("-sass", compiled.asm["cubin"])),
        dots=entry.dots,
        reason=entry.mma_sync,
    )


def aligned(entry: Any) -> tuple[str, ...]:
    """Arguments that are multiples of 16: in a run so is every stride of a head of 16 or more."""
    strides = {name for name in entry.signature if name.startswith("stride_")}
    return tuple(name for name in entry.signature if name in strides | set(entry.aligned))


def loop_sizes(sass: str) -> tuple[int, ...]:
    """Instructions between the target of every branch backwards and the branch."""
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    place = {int(address, 16): i for i, (address, _) in enumerate(code)}
    sizes = []
    for i, (_, instruction) in enumerate(code):
        branch = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
        target = place.get(int(branch[1], 16), i) if branch else i
        # The last instruction of every kernel branches to itself.
        if target < i:
            sizes.append(i + 1 - target)
    return tuple(sizes)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL and others of a compiled kernel."""
    text = _cuobjdump("-res-usage", cubin)
    found = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
    missing = {"REG", "STACK", "LOCAL"} - set(found)
    if missing:
        raise RuntimeError(f"cuobjdump -res-usage: expected {sorted(missing)}, found {text!r}")
    return found


def _cuobjdump(option: str, cubin: bytes) -> str:
    import triton

    name = "cuobjdump.exe" if sys.platform == "win32" else "cuobjdump"
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [str(tool), option, file.name], capture_output=True, text=True, check=True
        ).stdout


def measure_all(
    names: Iterable[str], architectures: Iterable[int] = ARCHITECTURES, workers: int = 1
) -> Iterator[Resources]:
    """Resources of all configurations named, in order.

    Raises:
        RuntimeError: from `measure`, for a kernel that does not compile.
    """
    work = [(name, arch) for name in names for arch in architectures]
    if workers <= 1:
        for name, arch in work:
            yield measure(name, arch)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(measure, *zip(*work, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 if a configuration has a fault on sm_90."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output")
    parser.add_argument("--only", default="", help="names that contain this text")
    parser.add_argument("--sm", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--workers", type=int, default=1, help="compilations at a time")
    parser.add_argument("--model", action="store_true", help="computed times of every launch")
    parser.add_argument("--markdown", action="store_true", help="... as tables of the README")
    options = parser.parse_args(arguments)
    if options.model or options.markdown:
        from bench import model
        from bench.launches import Shape

        return model.main(
            Shape(), as_json=options.json, markdown=options.markdown, workers=options.workers
        )
    names = [name for name in shipped() if options.only in name]
    table = []
    for row in measure_all(names, options.sm, options.workers) if names else ():
        table.append(row)
        if not options.json:
            print(_line(row), flush=True)
    if options.json:
        print(json.dumps([asdict(row) | {"fault": row.fault} for row in table], indent=1))
    return int(any(row.fault for row in table))


def _line(row: Resources) -> str:
    products = f"{row.wgmma:4d} wgmma {row.mma_sync:4d} mma.sync"
    return (
        f"sm_{row.architecture} {row.name:44s} {row.warps:2d} warps {row.registers:3d} registers "
        f"{row.spilled:4d} B spilled {row.shared:6d} B shared {products}"
        f"  loops of {' '.join(map(str, row.loops)) or 'none'}  {row.fault or ''}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
