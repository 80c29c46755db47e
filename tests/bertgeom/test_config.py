"""Settings and the identity of a run."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from bertgeom.config import (
    MeasureSettings,
    ResolvedSettings,
    Settings,
    check_same,
    differences,
    fingerprint,
)
from bertgeom.errors import MismatchError, UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "--window of at least 1, found 0"),
        ({"stride": -1}, "--stride of at least 1"),
        ({"min_length": 0}, "--min-length of at least 1"),
        ({"batch_tokens": 0}, "--batch-tokens"),
        ({"partition_windows": 0}, "--partition-windows"),
        ({"strand": "minus"}, r"--strand out of \+, -, both, found 'minus'"),
        ({"tier": "all"}, "--tier: expected 'core' or 'full'"),
        ({"keep": "cls,everything"}, "--keep out of block_map, cls, logits, tracks"),
        ({"tier": "core", "keep": "tracks"}, "--tier full"),
        ({"angles": "some"}, "--angles"),
        ({"theta": 1.5}, r"--theta: expected a share in \(0, 1\], found 1.5"),
        ({"theta": float("nan")}, "--theta"),
        ({"near": 100}, "--near: expected 0 to 64 tokens, found 100"),
        ({"near": 2.5}, "--near"),
        ({"near": True}, "--near"),
        ({"max_unknown": 1.5}, "--max-unknown"),
        ({"bitround": 24}, "--bitround between 1 and 23"),
        ({"impl": "cuda"}, "--impl"),
        ({"windw": 3}, r"found \['windw'\]"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.of(**options)


def test_keep_is_a_set_however_it_is_written() -> None:
    assert Settings(keep="logits, cls").keep == ("cls", "logits")  # type: ignore[arg-type]
    assert Settings(keep=("cls", "logits", "cls")).keep == ("cls", "logits")
    assert Settings(keep="").keep == ()  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    settings = Settings(window=100, keep=("cls",), bitround=7)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_what_changes_no_number_is_no_part_of_the_identity() -> None:
    assert Settings().identity_settings() == Settings(trust_remote_code=True).identity_settings()
    assert Settings().identity_settings() != Settings(theta=0.4).identity_settings()


def test_the_fingerprint_does_not_depend_on_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_every_difference_is_named() -> None:
    old = {"settings": {"window": 10, "tier": "full"}, "model": {"fingerprint": "x"}}
    new = {"settings": {"window": 20, "tier": "full"}, "model": {"fingerprint": "y"}, "more": 1}
    assert differences(old, new) == [
        'model.fingerprint: "x" in the store, "y" now',
        "more: null in the store, 1 now",
        "settings.window: 10 in the store, 20 now",
    ]
    with pytest.raises(MismatchError, match=r"s\.zarr.*settings\.window: 10 in the store, 20 now"):
        check_same("s.zarr", old, new)
    check_same("s.zarr", old, old)


def test_lists_and_tuples_are_the_same_in_json() -> None:
    check_same("s.zarr", {"keep": ["cls"]}, {"keep": ("cls",)})


EDGES: dict[str, tuple[Any, ...]] = {
    "near": (-1, 0, 1, 64, 65, 2.5, "4", None),
    "theta": (0, 1e-9, 0.3, 1.0, 1.0001, -0.1, float("nan"), "0.3"),
    "tier": ("core", "full", "all", ""),
    "impl": ("auto", "triton", "numba", "reference", "cuda", ""),
}


@pytest.mark.parametrize("name", EDGES)
def test_a_setting_has_one_range_from_the_command_line_to_the_kernel(name: str) -> None:
    from bertgeom.config import MeasureSettings
    from bertgeom.kernels.attention_stats.options import fault

    for value in EDGES[name]:
        refused = []
        for make in (Settings, MeasureSettings):
            try:
                make(**{name: value})
                refused.append(False)
            except UsageError:
                refused.append(True)
        assert refused == [fault(name, value) is not None] * 2, value


def test_what_the_encoder_needs_has_the_defaults_of_the_settings() -> None:
    assert Settings().to_measure() == MeasureSettings()
    chosen = Settings(theta=0.4, near=2, tier="core", keep=("cls",), angles="all", impl="numba")
    found = chosen.to_measure(n_groups=3)
    shared = {f.name for f in fields(MeasureSettings)} & {f.name for f in fields(Settings)}
    assert shared == {"tier", "keep", "angles", "theta", "near", "impl"}
    assert {n: getattr(found, n) for n in shared} == {n: getattr(chosen, n) for n in shared}
    assert found.n_groups == 3


@pytest.mark.parametrize(
    "option",
    [
        {"theta": 1.5},
        {"near": -1},
        {"tier": "half"},
        {"angles": "some"},
        {"keep": ("x",)},
        {"impl": "x"},
    ],
)
def test_both_refuse_the_same_values(option: dict[str, Any]) -> None:
    for kind in (Settings, MeasureSettings):
        with pytest.raises(UsageError, match=next(iter(option))):
            kind(**option)


def test_resolved_settings_are_complete_and_written_in_the_same_order() -> None:
    decided = {"max_tokens": 512, "batch_tokens": 4096, "partition_windows": 7}
    resolved = Settings(theta=0.4).resolved(**decided)
    assert resolved.to_json() == {**Settings(theta=0.4).to_json(), **decided}
    assert list(resolved.to_json()) == list(Settings().to_json())
    assert ResolvedSettings.from_json(resolved.to_json()) == resolved
    with pytest.raises(ValueError, match="partition_windows is not decided"):
        Settings().resolved(max_tokens=512, batch_tokens=4096, partition_windows=None)
