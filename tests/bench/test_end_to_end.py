"""The breakdown of a run, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import end_to_end, sequence


def test_every_stage_and_step_has_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = tmp_path / "genomes.fa"
    pieces = [x[:150] for x in sequence.genomes(6)]
    fasta.write_text("".join(f">r{i}\n{x.tobytes().decode()}\n" for i, x in enumerate(pieces)))
    assert end_to_end.main([str(fasta), "--rounds", "1", "--no-save"]) == 0
    printed = capsys.readouterr().out
    assert "6 windows" in printed
    for name in ("ingest", "partitions", "finalise", "read and tokenise", "loop, bare", "write"):
        assert name in printed
    (line,) = [x for x in printed.splitlines() if x.startswith("whole command")]
    assert 0 < float(line.split()[4]) < 1
