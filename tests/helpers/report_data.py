"""A Dataset as `bertgeom.open` gives it, with random numbers, and a reader of pages."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import xarray

from bertgeom import variables
from bertgeom.store.layout import Layout, Shape

MODEL = {"id": "tiny", "fingerprint": "ab" * 32, "n_layers": 3, "n_heads": 4, "hidden": 16}


def dataset(
    n: int = 60,
    *,
    labels: tuple[str, ...] = ("alpha", "delta", "omicron"),
    layers: int = 3,
    heads: int = 4,
    keep: tuple[str, ...] = ("block_map", "cls", "logits"),
    groups: tuple[str, ...] = ("NTD", "RBD"),
    seed: int = 0,
) -> xarray.Dataset:
    """All arrays of a run over n windows; the last is quarantined, labels take turns."""
    shape = Shape(layers, heads, 16, labels or ("a", "b"), 64, keep=keep, group_names=groups)
    layout = Layout(shape, n, n)
    rng = np.random.default_rng(seed)
    arrays = {v.name: _values(v, layout.shape(v), rng) for v in layout.variables}
    code = np.arange(n) % len(labels) if labels else np.full(n, -1)
    for name in ("attention_entropy", "cone_index", "cls", "gate_mass"):
        if name in arrays:
            x = arrays[name]
            x += (0.3 * code).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    if "gate_mass" in arrays:
        arrays["gate_mass"] /= arrays["gate_mass"].sum(axis=-1, keepdims=True)
    arrays["label"] = code.astype(np.int32)
    arrays["record_index"] = np.arange(n, dtype=np.uint32)
    arrays["flags"][-1] = variables.flag_bit("quarantined")
    for v in layout.variables:
        if v.kind != "window" and arrays[v.name].dtype.kind == "f":
            arrays[v.name][-1] = np.nan
    coords = {c.name: (c.dim, np.asarray(c.values)) for c in layout.coordinates}
    attributes = {
        "format": "bertgeom",
        "bertgeom_version": "0",
        "model": MODEL,
        "tokenizer": {"kind": "kmer", "k": 12, "stride": 9},
        "dtype": "float32",
        "device": "cpu",
        "settings": {"window": 4000, "theta": 0.3},
        "sources": [{"name": "genomes.fasta", "size": 1234, "sha256": "cd" * 32}],
        "sequences": {"n_records": n, "content_sha256": "ef" * 32},
        "labels": list(labels),
        "complete": True,
    }
    found = {
        v.name: (v.dims, arrays[v.name], {"units": v.unit, "description": v.description})
        for v in layout.variables
    }
    return xarray.Dataset(found, coords=coords, attrs=attributes)


def _values(
    variable: variables.Variable, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    if variable.dtype == "string":
        return np.array([f"record {i}" for i in range(shape[0])], dtype=object)
    if variable.name == "gate":
        return rng.integers(0, 9, shape).astype(np.uint8)
    if variable.name == "angle_histogram":
        return rng.poisson(40 * np.exp(-(((np.arange(90) - 35) / 9.0) ** 2)), shape).astype("u4")
    if variable.name in ("gate_mass", "block_map", "attention_offset_profile"):
        axes = (-2, -1) if variable.name == "block_map" else (-1,)
        x = rng.gamma(0.4, size=(1, *shape[1:])) * rng.gamma(8.0, size=shape)
        return (x / x.sum(axis=axes, keepdims=True)).astype(variable.dtype)
    if np.dtype(variable.dtype).kind in "ui":
        return rng.integers(20, 60, shape).astype(variable.dtype) * (variable.name != "flags")
    if np.dtype(variable.dtype).kind == "b":
        return np.zeros(shape, dtype=bool)
    base = rng.random((1, *shape[1:]))
    return (base + 0.1 * rng.random(shape)).astype(variable.dtype)


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Tags in order; complains of any that is not closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


def pictures(text: str) -> list[ElementTree.Element]:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', text)
    return [ElementTree.fromstring(base64.b64decode(one)) for one in found]
