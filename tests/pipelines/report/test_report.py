"""The report: self-contained, escaped, equal for equal stores, and true to the store."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report_data
import xarray

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from bertgeom import variables
from bertgeom.errors import ImplementationUnavailableError, UsageError
from bertgeom.pipelines.report import build, page, sections, summary
from bertgeom.pipelines.report.figures import cohorts, style
from bertgeom.pipelines.report.summary import ALL, Moments, summarise

outline, pictures = report_data.outline, report_data.pictures

HOSTILE = ("</title><script>alert(1)</script>", '" onerror="alert(2)', "$\\frac{$ & \x00 \u202e")


@pytest.fixture(scope="module")
def data() -> xarray.Dataset:
    return report_data.dataset()


@pytest.fixture(scope="module")
def text(data: xarray.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    counts = build.report(data, out)
    assert counts["bytes"] == out.stat().st_size < 2_000_000
    return out.read_text("utf-8")


def test_every_tag_is_closed_and_every_figure_has_alt_and_caption(text: str) -> None:
    parsed = outline(text)
    figures, images = parsed.all("figure"), parsed.all("img")
    assert len(figures) == len(images) == len(parsed.all("figcaption")) >= 15
    assert all(len(image["alt"]) > 30 for image in images)
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in parsed.all("a")} <= set(ids)


def test_captions_name_arrays_of_the_store(text: str, data: xarray.Dataset) -> None:
    names = re.findall(r'class="arrays">(.*?)</span>', text)
    arrays = {name for block in names for name in re.findall(r"<code>(.*?)</code>", block)}
    assert len(arrays) > 20
    assert arrays <= {str(name) for name in data.data_vars}


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    parsed = outline(text)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert "http://" not in text
    assert "https://" not in text
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in parsed.all("img"))
    for picture in pictures(text):
        for element in picture.iter():
            assert not element.tag.endswith(("script", "foreignObject"))
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))


def test_labels_ids_and_names_are_escaped(tmp_path: Path) -> None:
    data = report_data.dataset(24, labels=HOSTILE, groups=HOSTILE, layers=1, heads=2)
    data.attrs["model"] = {"id": HOSTILE[0]}
    data.attrs["sources"] = [{"name": HOSTILE[1], "size": 3, "sha256": HOSTILE[0]}]
    data.attrs["settings"] = {HOSTILE[0]: HOSTILE[1]}
    build.report(data, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    parsed = outline(text)
    assert not parsed.all("script")
    assert not any(name.startswith("on") for _, a in parsed.found for name in a)
    assert HOSTILE[0] in "".join(parsed.text)
    assert "\x00" not in text
    assert len(pictures(text)) == len(parsed.all("img"))


def test_equal_stores_give_equal_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("a.html", "b.html"):
        build.report(report_data.dataset(20, layers=1, heads=2), tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_means_are_those_of_the_store(data: xarray.Dataset) -> None:
    found = summarise(data)
    kept = np.arange(len(data["flags"])) < len(data["flags"]) - 1
    for name in ("attention_entropy", "angle_histogram", "block_map", "cone_index", "logits"):
        values = np.asarray(data[name], dtype=np.float64)[kept]
        np.testing.assert_allclose(found.of(name), values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.variance[name][0], values.var(axis=0), rtol=1e-8, atol=0)
        delta = np.asarray(data["label"])[kept] == 1
        np.testing.assert_allclose(found.of(name, "delta"), values[delta].mean(axis=0), rtol=1e-12)
    assert found.counts.windows == 60
    assert found.counts.measured == 59
    assert found.counts.flags["quarantined"] == 1
    assert found.counts.cohorts == {"alpha": 20, "delta": 20, "omicron": 19}
    assert found.counts.tokens == int(np.asarray(data["n_tokens"]).sum())


def test_the_head_table_prints_the_means(text: str, data: xarray.Dataset) -> None:
    mean = np.asarray(data["attention_entropy"], dtype=np.float64)[:-1].mean(axis=0)
    rows = re.findall(r'<th scope="row">(\d\.\d)</th>(.*?)</tr>', text)
    cells = {name: re.findall(r'<td class="n">(.*?)</td>', row)[0] for name, row in rows}
    assert len(cells) == mean.size
    for (layer, head), value in np.ndenumerate(mean):
        assert cells[f"{layer}.{head}"] == f"{value:.3f}"


def test_chunks_are_read_one_at_a_time(
    data: xarray.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_AT_ONCE", 2000)
    largest = 0
    honest = summary.Moments.of

    def watched(values: np.ndarray, codes: np.ndarray, n: int) -> Moments:
        nonlocal largest
        largest = max(largest, values[:1].size and values.size)
        return honest(values, codes, n)

    whole = summarise(data)
    monkeypatch.setattr(summary.Moments, "of", watched)
    parts = summarise(data)
    assert largest <= max(2000, data["block_map"][0].size)
    for name in parts.mean:
        np.testing.assert_allclose(parts.mean[name], whole.mean[name], rtol=1e-9, atol=1e-12)


def test_the_sample_is_bounded_even_and_without_missing_windows(data: xarray.Dataset) -> None:
    found = summarise(data, n_sample=10)
    rows = found.sample["window"].values
    assert len(rows) == 10
    # One of every tenth of the 59 windows with statistics, at no fixed place in it.
    edges = np.arange(11) * 59 // 10
    assert ((rows >= edges[:-1]) & (rows < edges[1:])).all()
    assert len(set(rows - edges[:-1])) > 2
    assert "10 of 59" in found.sampled
    np.testing.assert_array_equal(found.codes, np.asarray(data["label"])[rows])


def test_effect_sizes_follow_from_counts_means_and_variances(data: xarray.Dataset) -> None:
    found = summarise(data)
    values = np.asarray(data["attention_entropy"], dtype=np.float64)[:-1]
    sizes = cohorts.cohens_d(found, "attention_entropy")
    assert len(sizes) == len(found.cohorts) == 3
    for code, size in enumerate(sizes):
        inside = np.asarray(data["label"])[:-1] == code
        a, b = values[inside], values[~inside]
        pooled = ((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / 57
        expected = (a.mean(0) - b.mean(0)) / np.sqrt(pooled)
        np.testing.assert_allclose(size, expected, rtol=1e-9)


def test_principal_planes_keep_the_distances_that_two_axes_can_keep() -> None:
    rng = np.random.default_rng(3)
    flat = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 9))
    found = cohorts.plane("x", flat)
    assert sum(found.explained) == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(found.points[0] - found.points[1:], axis=1),
        np.linalg.norm(flat[0] - flat[1:], axis=1),
    )


def test_weights_and_spectra_are_drawn_where_the_store_holds_them(data: xarray.Dataset) -> None:
    rng = np.random.default_rng(0)
    sizes = {"sample": 2, "layer": 3, "head": 4, "component": 5, "projection": 3, "spectrum": 4}
    static = {
        v.name: (v.dims, rng.random([sizes.get(d, 6) for d in v.dims]))
        for v in (*variables.WEIGHT_VARIABLES, *variables.SPECTRUM_VARIABLES)
    }
    found = summarise(data[["gate_mass", "flags"]].assign(static))
    assert set(found.static.data_vars) == set(static)
    whole = page.Page("x", "y")
    for make in (sections.weights, sections.spectra):
        assert outline(make(whole, found)).all("img")
    assert whole.n_figures == 3


def test_a_core_store_without_labels_and_options_has_a_report(tmp_path: Path) -> None:
    data = report_data.dataset(5, labels=(), keep=(), groups=(), layers=1, heads=1)
    core = data[[n for n in data.data_vars if variables.VARIABLES[str(n)].tier == "core"]]
    counts = build.report(core, tmp_path / "r.html")
    assert counts["figures"] >= 6
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "cohort" not in outline(text).text
    assert not summarise(core).cohorts
    assert list(summarise(core).mean["cohort"].values) == [ALL]


def test_a_store_without_measured_windows_has_a_report(tmp_path: Path) -> None:
    data = report_data.dataset(3, labels=(), keep=(), groups=(), layers=1, heads=1)
    for name, array in data.data_vars.items():
        if array.dtype.kind == "f":
            data[name] = array * np.nan
    data["flags"][:] = variables.flag_bit("empty")
    build.report(data, tmp_path / "r.html")
    assert "windows without statistics" in (tmp_path / "r.html").read_text("utf-8")


def test_a_place_that_cannot_be_written_is_named_before_work(
    data: xarray.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        build.report(data, tmp_path / "nowhere" / "r.html")
    with pytest.raises(UsageError, match="folder"):
        build.report(data, tmp_path)


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_a_library_the_error_says_what_to_install(
    data: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    page.templates.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImplementationUnavailableError, match=r"bertgeom\[report\]"):
        build.report(data, tmp_path / "r.html")


EVIL = "<i>&\"'\x00"
GOOD = "&lt;i&gt;&amp;&#34;&#39;\ufffd"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (page.join([EVIL, page.Html("<b>x</b>")]), f"{GOOD}<b>x</b>"),
        (page.paragraph(EVIL, 1), f"<p>{GOOD}1</p>"),
        (page.paragraph("x", kind="warn"), '<p class="warn">x</p>'),
        (page.bold(EVIL), f"<b>{GOOD}</b>"),
        (page.codes([EVIL, "x"]), f"<code>{GOOD}</code>, <code>x</code>"),
        (page.bullets([EVIL, page.bold("x")]), f"<ul><li>{GOOD}</li><li><b>x</b></li></ul>"),
        (
            page.tiles([(EVIL, EVIL)]),
            f'<dl class="tiles"><div><dt>{GOOD}</dt><dd>{GOOD}</dd></div></dl>',
        ),
        (
            page.facts([(EVIL, page.codes("x"))]),
            '<div class="wide"><table class="facts"><tbody>'
            f'<tr><th scope="row">{GOOD}</th><td><code>x</code></td></tr></tbody></table></div>',
        ),
        (
            page.table(EVIL, [EVIL, "b", "c"], [(EVIL, EVIL, 1)], text=2),
            f'<div class="wide"><table><caption>{GOOD}</caption><thead><tr><th scope="col">{GOOD}'
            '</th><th scope="col">b</th><th scope="col" class="n">c</th></tr></thead><tbody><tr>'
            f'<th scope="row">{GOOD}</th><td>{GOOD}</td><td class="n">1</td></tr></tbody></table>'
            "</div>",
        ),
        (
            page.details(EVIL, EVIL),
            f"<details><summary>{GOOD}</summary>{GOOD}</details>",
        ),
    ],
)
def test_every_part_escapes_and_leaves_html_alone(part: str, expected: str) -> None:
    assert isinstance(part, page.Html)
    assert part == expected


def test_a_figure_has_number_title_caption_arrays_and_alt_text(data: xarray.Dataset) -> None:
    whole = page.Page(EVIL, EVIL)
    picture = style.new_figure(2, 1)
    whole.figure(picture, "x", "y", ["a", "b"], "z")
    figure = whole.figure(picture, EVIL, EVIL, [EVIL], EVIL)
    image = re.search(r'^<figure id="figure-2"><img src="data:image/svg[^"]+" (.*?)>', figure)
    assert image is not None
    assert image[1] == f'alt="{GOOD}" width="192" height="96"'
    assert figure.removeprefix(image[0]) == (
        f"<figcaption><b>Figure 2. {GOOD}.</b> {GOOD} "
        f'<span class="arrays">Array: <code>{GOOD}</code>.</span></figcaption></figure>'
    )
    whole.add("anchor", EVIL, figure)
    whole.add("empty", "left out", "", page.Html())
    parsed = outline(whole.render())
    assert [a for _, a in parsed.found if "href" in a] == [{"href": "#anchor"}]
    assert len(parsed.all("section")) == len(parsed.all("figure")) == 1
    assert not parsed.all("i")


def test_no_template_marks_a_value_as_safe() -> None:
    """Only `Html` does, so that every text of a store is escaped."""
    folder = Path(page.__file__).parent / "templates"
    texts = [path.read_text("utf-8") for path in sorted(folder.iterdir())]
    assert len(texts) >= 3
    assert not [text for text in texts if re.search(r"\|\s*safe|autoescape|Markup", text)]


def test_figures_leave_no_global_state(data: xarray.Dataset) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    style.svg(cohorts.effects(summarise(data)))
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.skipif(browser() is None, reason="no chromium is installed")
def test_a_browser_shows_every_figure_without_complaint(text: str, tmp_path: Path) -> None:
    source = tmp_path / "report.html"
    source.write_text(text, "utf-8")
    shot = tmp_path / "report.png"
    ran = subprocess.run(
        [
            str(browser()),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=900,1400",
            f"--screenshot={shot}",
            source.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0
    assert ":CONSOLE" not in ran.stderr
    assert shot.stat().st_size > 20_000
