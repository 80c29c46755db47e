"""The CPU kernels give the bits that were recorded: moving or tidying code changes no number.

A change of a number is sometimes meant. Then say so in the changelog, and record anew on a quiet
machine, with and without the tile unit:

    python tests/kernels/test_recorded_results.py
    BERTGEOM_AMX=0 python tests/kernels/test_recorded_results.py

Bits depend on the CPU, because BLAS chooses its loops by it. What was recorded on one kind is
compared bit by bit there, and to a few roundings everywhere else.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from bertgeom.kernels import attention_stats, pairwise_angle_histogram, station_statistics
from bertgeom.kernels._cpu import amx

RECORDED = Path(__file__).parents[1] / "data" / "kernel_results.npz"
#: Tracks and moments of a few hundred numbers: as far as sums in another order are.
ROUNDINGS = {"rtol": 5e-5, "atol": 5e-6}
#: Share of the numbers that may jump on another CPU: counts of what lies at a threshold.
MOST_JUMPS = 1e-3


def kind() -> str:
    """What decides the order of sums: the vendor, the widest vectors, and the tile unit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    vendor = next((x.split(":")[1].strip() for x in lines if x.startswith("vendor_id")), "unknown")
    unit = "tile unit" if amx.usable() else "blas"
    return f"{vendor} {torch.backends.cpu.get_cpu_capability()} {unit}"


def results() -> dict[str, np.ndarray]:
    """Every statistic of seeded inputs: short and long windows, special tokens, groups."""
    random = np.random.default_rng(20250219)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))

    found: dict[str, torch.Tensor] = {}
    for n, d, lengths in ((160, 32, [160, 97]), (70, 16, [70, 1])):
        q, k, v = (tensor(2, 3, n, d) for _ in range(3))
        stats = attention_stats(
            q * 2,
            k,
            v,
            lengths=torch.tensor(lengths),
            special=torch.arange(n).expand(2, n) % 40 == 0,
            groups=(torch.arange(n, dtype=torch.int32) % 4).expand(2, n).contiguous(),
            n_groups=2,
            rows=True,
            columns=True,
            head_cones=True,
        )
        values = {"output": stats.output[..., ::4], **stats.values}
        found |= {f"attention {n} {name}": value for name, value in values.items()}
        x = tensor(2, n, 4 * d) + 0.3
        values = station_statistics(x, lengths=torch.tensor(lengths), angles=True)
        found |= {f"station {n} {name}": value for name, value in values.items()}
        pairs = pairwise_angle_histogram(x[0], x[1])
        found |= {f"pairs {n} {name}": value for name, value in pairs.items()}
    return {name: value.numpy() for name, value in found.items()}


def record() -> None:
    """Add the results of this kind of CPU to the file."""
    known = dict(np.load(RECORDED)) if RECORDED.exists() else {}
    known |= {f"{kind()}/{name}": value for name, value in results().items()}
    np.savez_compressed(RECORDED, **known)


@pytest.mark.usefixtures("products")
def test_results_are_those_recorded() -> None:
    with np.load(RECORDED) as recorded:
        by_kind: dict[str, dict[str, np.ndarray]] = {}
        for key in recorded.files:
            of, name = key.split("/")
            by_kind.setdefault(of, {})[name] = recorded[key]
    found = results()
    same = by_kind.get(kind())
    if same:
        assert set(found) == set(same)
        for name, value in same.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        return
    for expected in by_kind.values():
        assert set(found) == set(expected)
        apart = {name: far(found[name], value) for name, value in expected.items()}
        n_numbers = sum(value.size for value in expected.values())
        far_ones = {name: n for name, n in apart.items() if n}
        assert sum(far_ones.values()) <= MOST_JUMPS * n_numbers, far_ones


def far(found: np.ndarray, expected: np.ndarray) -> int:
    """How many numbers are further apart than a few roundings."""
    return int((~np.isclose(found, expected, **ROUNDINGS, equal_nan=True)).sum())


if __name__ == "__main__":
    record()
