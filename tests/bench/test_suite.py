"""The tables and figures of the benchmark suite; its benchmarks run in `bench/suite`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.suite import limits, plot, table
from bench.suite.cases import Case, Cost, cases


def row(way: str, n: int, seconds: float, *, base: bool = False) -> dict[str, Any]:
    return {
        "kernel": "attention, tier full",
        "way": way,
        "shape": {"B": 1, "N": n, "dtype": "float32"},
        "base": base,
        "seconds": seconds,
        "rounds": 5,
        "throughput": n * n / seconds,
        "unit": "logit",
        "roofline": 0.25,
        "iqr": seconds / 100,
    }


ROWS = [
    row(way, n, seconds * n, base=way == "sdpa")
    for n in (128, 512)
    for way, seconds in (("sdpa", 1e-5), ("numba, BLAS", 1.5e-5))
]


def saved(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """As pytest-benchmark writes it."""
    path = tmp_path / "suite.json"
    benchmarks = [{"extra_info": one, "stats": {"iqr": one["iqr"]}} for one in rows]
    about = {"machine_info": {"bertgeom": {"device": "cpu-x"}}, "benchmarks": benchmarks}
    path.write_text(json.dumps(about))
    return path


def test_one_table_a_kernel_with_multiples_of_the_base_of_the_same_shape() -> None:
    other = {**row("numba", 128, 2.0), "kernel": "k-mers"}
    lines = table.lines([*ROWS, other])
    assert [line for line in lines if line in ("attention, tier full", "k-mers")] == [
        "attention, tier full",
        "k-mers",
    ]
    (found,) = [line for line in lines if line.startswith("B1 N512") and "BLAS" in line]
    assert "7.680 ms" in found
    assert " 1.50 " in found
    assert "34.1 Mlogit/s" in found
    assert "25.0 %" in found
    # Nothing to be a multiple of.
    assert " - " in lines[-1]


def test_a_roofline_is_the_higher_of_its_two_ceilings() -> None:
    found = limits.Limits(flops=100.0, bytes=10.0)
    assert found.least_seconds(Cost(1, "x", flop=1000.0, bytes=10.0)) == 10.0
    assert found.least_seconds(Cost(1, "x", flop=1.0, bytes=50.0)) == 5.0


def test_ceilings_are_measured() -> None:
    found = limits.measured("cpu", size=128, n_bytes=1 << 20)
    # A product of 128 in less than a second; a copy of a megabyte too.
    assert found.flops > 1e6
    assert found.bytes > 1e6


def test_names_of_cases_stay_alike_across_machines() -> None:
    (one,) = cases(["copy"], "copy", B=[1], N=[128], dtype=["float32"])
    assert str(one) == "copy-B1_N128_float32"
    assert str(Case("numba, BLAS", {"bases": 300})) == "numba_BLAS-300"


def test_a_saved_run_is_drawn_over_the_window_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot.main([str(saved(tmp_path, ROWS)), "--out", str(tmp_path / "figures")]) == 0
    (figure,) = (tmp_path / "figures").iterdir()
    assert figure.name == "attention__tier_full.svg"
    assert "svg" in figure.read_text()
    assert "drawn:" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{}]}'])
def test_another_file_is_refused_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert plot.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "other.json" in printed.err
    assert not printed.out
