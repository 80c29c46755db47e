"""The case study's analysis: true to the store, right about places, and readable."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_data
import xarray
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="the extra `casestudy` is not installed")
pytest.importorskip("sklearn", reason="the extra `casestudy` is not installed")

import bertgeom
from bertgeom import data
from bertgeom.analysis.cohorts import Moments
from bertgeom.analysis.contrasts import welch
from bertgeom.errors import InputError, StoreError, UsageError
from bertgeom.pipelines.casestudy import analyze as analysis
from bertgeom.pipelines.casestudy import positions
from bertgeom.pipelines.casestudy import report as pages
from bertgeom.pipelines.casestudy.along import STEP
from bertgeom.pipelines.casestudy.cli import app
from bertgeom.pipelines.casestudy.genomes import domains
from bertgeom.pipelines.casestudy.genomes.lineages import SPIKE
from bertgeom.pipelines.casestudy.measure import STORE
from bertgeom.store.dataset import attribute

Arrays = dict[str, np.ndarray]
CLASSES = ("alpha", "delta", "omicron")
N = 6
HOSTILE = "<script>alert(1)</script>"
REFERENCE = data.reference()[slice(*SPIKE)]


def demo_records() -> Iterator[tuple[str, str, str]]:
    """id, bases and class of two demo spikes of each of three classes."""
    rows = [line.split("\t") for line in data.demo_labels().read_text().splitlines()[1:]]
    label = {row[0]: row[1] for row in rows}
    seen: list[str] = []
    text = gzip.decompress(data.demo_genomes().read_bytes()).decode()
    for block in text.split(">")[1:]:
        name, *lines = block.splitlines()
        kind = label[name.split()[0]]
        if kind in CLASSES and (seen := [*seen, kind]).count(kind) <= 2:
            yield name.split()[0], "".join(lines), kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("casestudy")
    records = [*demo_records(), (HOSTILE, "N" * 3822, "alpha")]
    fasta, labels = place / "in.fasta", place / "in.tsv"
    fasta.write_text("".join(f">{name}\n{bases}\n" for name, bases, _ in records))
    rows = [f"{name}\t{'UK' if label == 'alpha' else label}" for name, _, label in records]
    labels.write_text("record_id\tclass\n" + "\n".join(rows) + "\n")
    out = place / "out"
    analysis.analyze(
        fasta,
        out,
        labels=labels,
        relabel={"UK": "alpha"},
        settings=analysis.Settings(spectra_windows=1),
        threads=1,
    )
    return out


@pytest.fixture(scope="module")
def dataset(folder: Path) -> xarray.Dataset:
    return bertgeom.open(folder / STORE).load()


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return analysis.load(folder)[0]


@pytest.fixture(scope="module")
def arrays(folder: Path) -> Arrays:
    return analysis.load(folder)[1]


def test_every_labelled_genome_is_measured_or_listed_with_a_reason(result: dict[str, Any]) -> None:
    assert result["genomes"]["measured"] == N
    assert result["genomes"]["by_class"] == dict.fromkeys(CLASSES, 2)
    assert [one["id"] for one in result["genomes"]["skipped"]] == [HOSTILE]
    assert "no base is known" in result["genomes"]["skipped"][0]["reason"]


def test_means_by_class_are_those_of_the_store(arrays: Arrays, dataset: xarray.Dataset) -> None:
    label = np.asarray(dataset["label_code"])
    assert attribute(dataset, "labels") == list(CLASSES)
    checked = 0
    for name, array in dataset.data_vars.items():
        if f"mean_{name}" not in arrays:
            continue
        values = np.asarray(array, dtype=np.float64)
        found = arrays[f"mean_{name}"]
        np.testing.assert_allclose(found[0], values.mean(axis=0), rtol=1e-9, atol=1e-12)
        for code in range(3):
            expected = values[label == code].mean(axis=0)
            np.testing.assert_allclose(found[1 + code], expected, rtol=1e-9, atol=1e-12)
        checked += 1
    assert checked > 40


def test_figures_in_the_json_are_those_of_the_store(
    result: dict[str, Any], dataset: xarray.Dataset
) -> None:
    names = [str(name) for name in dataset["class"].values]
    truth = [CLASSES[i] for i in np.asarray(dataset["label_code"])]
    answers = [names[i] for i in np.asarray(dataset["logits"]).argmax(axis=1)]
    hits = np.mean([a == b for a, b in zip(truth, answers, strict=True)])
    assert result["classification"]["accuracy"] == hits
    assert np.sum(result["classification"]["confusion"]["counts"]) == N
    for head in result["heads"]:
        at = {"layer": head["layer"], "head": head["head"]}
        k90 = np.median(np.asarray(dataset["attention_k90_median"].isel(at)))
        assert head["k90_median"] == k90
        mass = np.asarray(dataset["gate_mass"].isel(at), dtype=np.float64).mean(axis=0)
        np.testing.assert_allclose(list(head["gate_mass"].values()), mass, rtol=1e-9)
        top = list(head["gate_mass"])[int(mass.argmax())]
        assert head["gate"] == (top if mass.max() >= 0.5 else "mixed")
    delta = np.asarray(dataset["cone_index"], dtype=np.float64)[
        np.asarray(dataset["label_code"]) == 1
    ]
    np.testing.assert_allclose(result["cone_index"]["delta"], delta.mean(axis=0), rtol=1e-9)


def test_attention_on_domains_is_the_attention_its_tokens_receive(
    result: dict[str, Any], dataset: xarray.Dataset, folder: Path
) -> None:
    spikes = dict(fasta_of(folder / "spikes.fasta"))
    annotations = domains.spike_annotations(spikes.items())
    received = np.asarray(dataset["attention_received"], dtype=np.float64)
    total = np.zeros_like(np.asarray(result["domains"]["mass"]), dtype=np.float64)
    share = np.zeros(total.shape[-1])
    for row, name in enumerate(dataset["record_id"].values):
        start = np.asarray(dataset["token_start"][row]).astype(int)
        stop = np.asarray(dataset["token_stop"][row]).astype(int)
        n = int(dataset["n_tokens"][row])
        # The last k-mer may hang over into padding, and so beyond the gene.
        bits = annotations.groups(str(name), start, np.minimum(stop, len(spikes[str(name)])))
        for group in range(total.shape[-1]):
            inside = (bits >> group & 1).astype(bool)
            total[..., group] += received[row][..., inside].sum(axis=-1) / n
            share[group] += inside[:n].mean()
    np.testing.assert_allclose(result["domains"]["mass"], total / N, atol=2e-4)
    np.testing.assert_allclose(result["domains"]["token_share"], share / N, rtol=1e-9)
    confident = np.asarray(dataset["attention_confident_mass"], dtype=np.float64).mean(axis=0)
    np.testing.assert_allclose(result["domains"]["confident_mass_total"], confident, rtol=1e-5)
    s1, s2 = (result["domains"]["names"].index(name) for name in ("S1", "S2"))
    inside = np.asarray(result["domains"]["confident_mass"])[..., [s1, s2]].sum(axis=-1)
    assert (inside <= confident + 1e-3).all()


def fasta_of(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    for block in path.read_text().split(">")[1:]:
        name, *lines = block.splitlines()
        yield name, np.frombuffer("".join(lines).encode(), np.uint8)


def test_the_profile_along_the_spike_averages_the_tokens_of_its_steps(
    arrays: Arrays, dataset: xarray.Dataset, folder: Path
) -> None:
    spikes = dict(fasta_of(folder / "spikes.fasta"))
    received = np.asarray(dataset["attention_received"], dtype=np.float64).mean(axis=(1, 2))
    at = 3 * 500
    found = []
    for row, name in enumerate(dataset["record_id"].values):
        blocks = domains.align(spikes[str(name)])
        assert blocks is not None
        middle = (np.asarray(dataset["token_start"][row]) + dataset["token_stop"][row].values) // 2
        base = domains.reference_position(blocks, middle.astype(int))
        inside = (base // (3 * STEP) == at // (3 * STEP)) & (middle > 0)
        if inside.any():
            found.append(received[row, inside].mean())
    step = at // (3 * STEP)
    np.testing.assert_allclose(arrays["received_class"][0, step], np.mean(found), rtol=1e-3)
    assert arrays["received_n"][step] == len(found)


def test_the_exact_map_has_the_entropy_of_the_store(
    arrays: Arrays, dataset: xarray.Dataset
) -> None:
    window = int(arrays["exact_map_window"][0])
    for weights, (layer, head) in zip(
        arrays["exact_map"].astype(np.float64), arrays["exact_map_head"], strict=True
    ):
        assert weights.shape == (int(dataset["n_tokens"][window]),) * 2
        logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
        entropy = -(weights * logs).sum(axis=1).mean()
        stored = float(dataset["attention_entropy"][window, layer, head])
        assert entropy == pytest.approx(stored, abs=0.03)


def test_domains_keep_their_place_where_nothing_is_inserted_or_deleted() -> None:
    found = domains.spike_annotations([("x", REFERENCE)])
    assert found.names == tuple(d.name for d in domains.DOMAINS)
    for domain, where in zip(domains.DOMAINS, found.by_sequence["x"], strict=True):
        assert where.start.tolist() == [3 * (domain.first - 1)]
        assert where.stop.tolist() == [3 * domain.last]


def test_domains_move_with_a_deletion_an_insertion_and_through_unknown_bases() -> None:
    changed = np.concatenate([REFERENCE[:204], REFERENCE[210:642], b9(), REFERENCE[642:]])
    changed[2700:2800] = ord("N")
    found = domains.spike_annotations([("x", changed)])
    rbd, hr1 = (found.by_sequence["x"][i] for i in (2, 4))
    assert rbd.start.tolist() == [3 * 318 + 3]
    assert hr1.start.tolist() == [3 * 911 + 3]
    ends = found.by_sequence["x"][domains.DOMAINS.index(domain("CT"))]
    assert ends.stop.tolist() == [3 * 1273 + 3]


def b9() -> np.ndarray:
    return np.frombuffer(b"GAGCCAGAA", np.uint8)


def domain(name: str) -> domains.Domain:
    return next(d for d in domains.DOMAINS if d.name == name)


def test_sequences_that_are_no_spike_are_refused() -> None:
    rng = np.random.default_rng(0)
    other = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 3800)]
    with pytest.raises(InputError, match="spike genes"):
        domains.spike_annotations([("x", other)])


def test_positions_of_amino_acids_follow_the_alignment() -> None:
    cut = np.concatenate([REFERENCE[:204], REFERENCE[210:]])
    blocks = domains.align(cut)
    assert blocks is not None
    base = domains.reference_position(blocks, np.array([0, 100, 300, len(cut) - 1]))
    assert base.tolist() == [0, 100, 306, len(REFERENCE) - 1]


def test_defining_changes_are_named_as_virologists_do() -> None:
    alpha = domains.defining_amino_acids("alpha")
    assert {alpha[p] for p in (501, 570, 681, 982, 1118)} == {
        "N501Y",
        "A570D",
        "P681H",
        "S982A",
        "D1118H",
    }
    assert domains.defining_amino_acids("no class") == {}
    assert domains.domain_of(330) == "RBD"
    assert domains.domain_of(1200) == "HR2"
    assert domains.domain_of(310) == "S1"


def test_one_position_that_tells_a_class_is_found() -> None:
    rng = np.random.default_rng(1)
    codes = np.repeat([0, 1, 2], 20)
    ids = rng.integers(5, 8, (60, 30)).astype(np.int32)
    ids[:, 12] = 4 + 10 * (codes == 1)
    received = rng.random((60, 30))
    received[codes == 1, 12] += 5
    found = positions.one_versus_all(ids, codes, ["a", "b", "c"], received)
    best = {(f.name, f.by, f.splits): f for f in found}
    for by in ("tokens", "attention"):
        assert best["b", by, 1].f1 == 1
        assert best["b", by, 1].positions == (12,)
    assert best["a", "attention", 1].f1 < 0.8


def test_effects_of_positions_follow_the_rule_of_contrasts() -> None:
    """No genome alone, no rounding and no missing token makes a difference."""
    rng = np.random.default_rng(3)
    inside = np.arange(12) < 6
    received = np.ones((12, 6))
    received[:, 0] += 1e-7 * inside  # rounding of float32
    received[:, 1] = np.where(inside, 2.0, 1.0)  # no spread at all, hence no effect size
    received[:, 2] = np.where(np.arange(12) < 1, 9.0, np.nan)  # one genome has a token there
    received[:6, 3] = np.nan  # nobody of the class has one
    received[:, 4] = rng.normal(size=12) + 5 * inside
    received[:, 5] = rng.normal(size=12)
    received[6:9, 5] = np.nan
    assert positions.proposed_positions(received, inside, "float32").tolist() == [4, 5]
    assert positions.proposed_positions(received, inside, "float64").tolist()[0] == 4
    a, b = received[inside, 4], received[~inside, 4]
    size = abs(a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    moments = Moments.of(received, np.where(inside, 0, 1), 2)
    assert abs(welch(moments, 0, 1)["cohens_d"][4]) == pytest.approx(size)


def test_a_tree_without_proposals_looks_nowhere() -> None:
    codes = np.repeat([0, 1], 10)
    ids = np.stack([codes, 1 - codes], axis=1).astype(np.int32)
    found = positions.one_versus_all(ids, codes, ["a", "b"], np.ones((20, 2)))
    assert {(f.positions != (), f.mcc) for f in found if f.by == "tokens"} == {(True, 1.0)}
    assert {(f.positions, f.mcc) for f in found if f.by == "attention"} == {((), 0.0)}


def test_positions_without_information_tell_nothing() -> None:
    codes = np.tile([0, 1], 30)
    ids = np.random.default_rng(2).integers(0, 3, (60, 20)).astype(np.int32)
    for one in positions.one_versus_all(ids, codes, ["a", "b"]):
        assert abs(one.mcc) < 0.5


def test_classes_of_one_genome_are_left_out() -> None:
    found = positions.one_versus_all(np.zeros((3, 4), np.int32), np.array([0, 0, 1]), ["a", "b"])
    assert found == []


EVALUATION = {
    "n": 13,
    "n_skipped": 1,
    "skipped": [],
    "calibration": {
        "ece": 0.0123,
        "reliability": [{"from": 0.9, "to": 1.0, "n": 12, "confidence": 0.97, "accuracy": 1.0}],
    },
    "wrong": [
        {
            "id": HOSTILE,
            "truth": "alpha",
            "answer": "other",
            "best": "beta",
            "confidence": 0.3,
            "reason": HOSTILE,
        }
    ],
}


@pytest.fixture(scope="module")
def page(folder: Path, result: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    judged = result["classification"] | {"share": 0.9231}
    evaluation = EVALUATION | dict.fromkeys(("forced", "decided", "covered"), judged)
    place = tmp_path_factory.mktemp("page")
    simulated = {
        "profiles": {"poor": evaluation | {"n": 4321}},
        "by_share_of_n": [{"from": 0.1, "to": 0.25, "n": 80, "answered": 60, "right": 57}],
        "no_spike": {"n": 77, "other": 76},
    }
    files = []
    for name, figures in (("genomes", evaluation), ("simulated", simulated)):
        files.append(place / f"{name}.json")
        files[-1].write_text(json.dumps(figures))
    counts = pages.report(folder, place / "r.html", evaluation=files)
    assert counts["bytes"] < 3_000_000
    return (place / "r.html").read_text("utf-8")


def test_the_page_is_whole_escaped_and_needs_nothing_else(page: str) -> None:
    parsed = report_data.outline(page)
    images = parsed.all("img")
    assert len(images) == len(parsed.all("figcaption")) == len(parsed.all("figure")) >= 25
    assert all(len(image["alt"]) > 30 for image in images)
    assert not parsed.all("script")
    assert "http://" not in page
    assert "https://" not in page
    assert HOSTILE in "".join(parsed.text)
    assert len(report_data.pictures(page)) == len(images)


def test_the_page_prints_the_numbers_of_the_analysis(page: str, result: dict[str, Any]) -> None:
    text = "".join(report_data.outline(page).text)
    assert f"{result['classification']['accuracy']:.2%}" in text
    assert "0.0123" in text
    for figure in ("4,321", "10% to 25%", "75.0%", "95.0%", "76"):
        assert figure in text
    found = result["domains"]
    mean = np.asarray(found["mass"]).mean(axis=(0, 1))
    for i, name in enumerate(found["names"]):
        ratio = mean[i] / found["token_share"][i]
        assert f"{name}" in text
        assert f"{ratio:.2f}" in text
    assert "N501Y" in text or "S982A" in text


def test_a_page_is_made_of_the_store_it_belongs_to(
    folder: Path, tmp_path: Path, result: dict[str, Any]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    changed = {**result, "fingerprint": "0", "store": str(folder / STORE)}
    (other / analysis.RESULT).write_text(json.dumps(changed))
    (other / analysis.ARRAYS).write_bytes((folder / analysis.ARRAYS).read_bytes())
    with pytest.raises(StoreError, match="another"):
        pages.report(other, tmp_path / "r.html")
    with pytest.raises(StoreError, match="no analysis"):
        pages.report(tmp_path, tmp_path / "r.html")
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(InputError, match="casestudy evaluate"):
        pages.report(folder, tmp_path / "r.html", evaluation=[tmp_path / "e.json"])


def test_the_commands_pass_a_store_on_and_write_beside_it(
    folder: Path, result: dict[str, Any], arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def analysed(store: str, **options: Any) -> tuple[dict[str, Any], Arrays]:
        asked.append((store, options["model"]))
        return {**result, "genomes": {**result["genomes"]}}, arrays

    monkeypatch.setattr(analysis, "analyze_store", analysed)
    store, out = folder / STORE, folder.parent / "again"
    done = CliRunner().invoke(app, ["analyze", str(store), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert asked == [(str(store), None)]
    written = json.loads((out / analysis.RESULT).read_text())
    assert written == json.loads(done.stdout)
    assert Path(written["store"]) == store.absolute()
    assert (out / analysis.ARRAYS).read_bytes() == (folder / analysis.ARRAYS).read_bytes()


def test_genomes_need_labels(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels"):
        analysis.analyze(folder / "spikes.fasta", tmp_path / "x")


@pytest.mark.parametrize(
    ("drop", "said"), [("cls", "--keep"), ("attention_received", "tracks"), ("labels", "--labels")]
)
def test_a_store_without_what_is_needed_is_named(
    dataset: xarray.Dataset, monkeypatch: pytest.MonkeyPatch, drop: str, said: str
) -> None:
    lacking = dataset.copy()
    lacking.attrs = {**dataset.attrs}
    if drop == "labels":
        lacking.attrs["labels"] = []
    else:
        lacking = lacking.drop_vars(drop)
    monkeypatch.setattr("bertgeom.store.zarr_io.open", lambda path: lacking)
    with pytest.raises(StoreError, match=said):
        analysis.analyze_store("x.zarr")
