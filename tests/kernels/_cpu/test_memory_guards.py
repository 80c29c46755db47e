"""CPU kernels between guard words: lengths around every threshold, widths, numbers of threads.

Inputs lie in memory that is NaN all around, results and scratch memory between guard words (see
`Guards`): reading outside shows in the results, writing outside in the guards.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from sweeps import sample
from torch import Tensor

from bertgeom.kernels import (
    attention_stats,
    cone_sums,
    pairwise_angle_histogram,
    statistics_of_stations,
)
from bertgeom.kernels.attention_stats import api
from bertgeom.kernels.attention_stats import tolerance as attention_tolerance
from bertgeom.kernels.cone_angles.tolerance import angle_disagreements, cone_disagreements
from bertgeom.kernels.kmers import (
    KmerTable,
    count_ambiguous,
    encode_kmers,
    encode_singles,
    encode_split,
    kmer_keys,
    kmer_places,
    n_kmers,
    pack_kmers,
    reference,
    reverse_complement,
    single_table,
    unpack_kmers,
)
from bertgeom.kernels.stations.tolerance import stream_disagreements

both_products = pytest.mark.usefixtures("products", "threads")


def around(*thresholds: int) -> list[int]:
    return [n + off for n in thresholds for off in (-1, 0, 1)]


#: Tiles and pieces of 16 and 32, rows of 64, blocks of rows, heads that stay in memory.
SHORT = [0, 1, 2, *around(16, 32, 64, 128)]
TOKENS = [*SHORT, *around(512, 577, 673, 1024, 1152)]
#: Groups of 8 rows, tiles of 48 or 64 columns, blocks of 64 rows, tiles of 1,024 rows.
VECTORS = [0, 1, 2, *around(8, 48, 64, 128, 192, 1024)]
WIDTHS = [1, 2, 7, 31, 32, 33, 48, 64, 96]
THREADS = [1, 2, 5]


def surrounded(x: Tensor) -> Tensor:
    """The same numbers in the midst of NaN; rows lie apart."""
    *_, rows, width = x.shape
    wide = torch.full((*x.shape[:-2], rows + 2, width + 6), torch.nan)
    inside = wide[..., 1:-1, 3:-3]
    inside.copy_(x)
    return inside


def padded_with_nan(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, ..., N, D) with NaN in the slots from lengths[b] on."""
    for b, n in enumerate(lengths.tolist()):
        x[b, ..., n:, :] = torch.nan
    return x


@pytest.mark.parametrize("at", [-1, 5])
def test_a_number_written_or_read_outside_is_noticed(at: int, guards: Any) -> None:
    array = guards.empty(5, np.float32)
    outside = ctypes.c_float.from_address(array.ctypes.data + 4 * at)
    assert math.isnan(outside.value)
    word = ctypes.c_uint32.from_address(array.ctypes.data + 4 * at)
    before, outside.value = word.value, 0.0
    with pytest.raises(AssertionError):
        guards.check()
    word.value = before


@both_products
@pytest.mark.parametrize("seed", sample(range(6), 3))
def test_attention_stays_within_its_memory(seed: int, guards: Any) -> None:
    numbers = np.random.default_rng(seed)
    torch.manual_seed(seed)
    # One long window at most: the oracle keeps every weight in float64.
    lengths = torch.from_numpy(np.append(numbers.choice(SHORT, 3), numbers.choice(TOKENS, 1)))
    lengths = lengths[torch.randperm(4)]
    width = int(numbers.choice([1, 7, 31, 32, 33, 64]))
    n_slots = max(1, int(lengths.max())) + int(numbers.choice([0, 3]))
    query, key = (torch.randn(4, heads, n_slots, width) for heads in (2, 1))
    value = torch.randn(4, 1, n_slots, width)
    q, k, v = (surrounded(padded_with_nan(x, lengths)) for x in (query, key, value))
    options: dict[str, Any] = {
        "scale": width**-0.5,
        "window": [None, 0, 5, 64, 600][numbers.integers(5)],
        "tier": "full",
        "theta": float(numbers.choice([1e-3, 0.3])),
        "near": int(numbers.choice([0, 4, 64])),
        "n_offset_side": int(numbers.choice([1, 12])),
        "n_groups": 3,
        "rows": True,
        "columns": True,
    }
    slots: dict[str, Any] = {
        "special": torch.rand(4, n_slots) < 0.1,
        "groups": torch.randint(0, 8, (4, n_slots), dtype=torch.int32),
    }
    torch.set_num_threads(int(numbers.choice(THREADS)))
    found = attention_stats(q, k, v, lengths=lengths, **slots, **options, impl="numba")
    guards.check()
    plain = q.nan_to_num(0), k.nan_to_num(0), v.nan_to_num(0)
    asked = api.checked_options(**options)
    bounds = attention_tolerance.bounds(*plain, lengths, slots["special"], slots["groups"], asked)
    assert attention_tolerance.disagreements(bounds, found.output, found.values) == []


@both_products
@pytest.mark.parametrize("lengths", [[4097, 2049], [2047, 4095, 3]], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_attention_of_long_windows_stays_within_its_memory(
    lengths: list[int], window: int | None, guards: Any
) -> None:
    """Some rows against float64: the oracle would keep all weights."""
    torch.manual_seed(0)
    heads = [surrounded(torch.randn(len(lengths), 1, max(lengths), 32)) for _ in range(3)]
    asked: dict[str, Any] = {"lengths": torch.tensor(lengths), "window": window, "rows": True}
    torch.set_num_threads(2)
    found = attention_stats(*heads, **asked, impl="numba")
    guards.check()
    for b, n in enumerate(lengths):
        query, key, value = (x[b, 0, :n].double() for x in heads)
        some = torch.tensor(sorted({0, 1, n // 2, n - 1}))
        logits = query[some] @ key.T * 32**-0.5
        if window is not None:
            hidden = (some[:, None] - torch.arange(n)).abs() > window
            logits.masked_fill_(hidden, -torch.inf)
        weights = logits.softmax(1)
        output = found.output[b, 0, some].double()
        torch.testing.assert_close(output, weights @ value, rtol=1e-4, atol=1e-5)
        entropy = torch.special.entr(weights).sum(1)
        rows = found.values["query_entropy"][b, 0].double()
        torch.testing.assert_close(rows[some], entropy, rtol=1e-4, atol=1e-4)
        assert found.values["attention_entropy"][b, 0].item() == pytest.approx(
            rows[:n].mean().item(), rel=1e-4
        )
        assert not found.output[b, 0, n:].any()


@both_products
@pytest.mark.parametrize("seed", sample(range(8), 4))
def test_stations_stay_within_their_memory(seed: int, guards: Any) -> None:
    """Whole windows by thread and blocks of windows, with angles and without."""
    numbers = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n_windows = int(numbers.choice([1, 2, 5]))
    lengths = torch.from_numpy(numbers.choice(VECTORS, n_windows))
    width, n_slots = int(numbers.choice(WIDTHS)), max(1, int(lengths.max()))
    states = []
    for offset in (0.0, 2.0):
        x = torch.randn(n_windows, n_slots, width) + offset * torch.randn(width)
        x[torch.rand(n_windows, n_slots) < 0.05] = 0
        states.append(padded_with_nan(surrounded(x), lengths))
    angles = [bool(seed % 2), True]
    torch.set_num_threads(int(numbers.choice(THREADS)))
    found = statistics_of_stations(states, lengths=lengths, angles=angles)
    guards.check()
    for s, x in enumerate(states):
        of_station = {k: v[s] for k, v in found.items() if not k.startswith("angle")}
        assert not stream_disagreements(x, lengths, of_station)
        cones = {k: v[:, None] for k, v in of_station.items() if k.startswith(("cone", "zero"))}
        assert not cone_disagreements(x[:, None], lengths, cones)
        if angles[s]:
            of_angles = {k: v[sum(angles[:s])] for k, v in found.items() if k.startswith("angle")}
            for b, n in enumerate(lengths.tolist()):
                one = {name: value[b] for name, value in of_angles.items()}
                assert not angle_disagreements(x[b, :n], None, one)


@both_products
@pytest.mark.parametrize("seed", sample(range(6), 3))
def test_cones_and_angles_stay_within_their_memory(seed: int, guards: Any) -> None:
    numbers = np.random.default_rng(100 + seed)
    torch.manual_seed(seed)
    lengths, others = (torch.from_numpy(numbers.choice(VECTORS, 3)) for _ in range(2))
    if seed % 2:
        others = others.clamp(max=129)
    width = int(numbers.choice(WIDTHS))
    x, y = (
        padded_with_nan(surrounded(torch.randn(3, max(1, int(n.max())), width) + 0.5), n)
        for n in (lengths, others)
    )
    torch.set_num_threads(int(numbers.choice(THREADS)))
    cones = cone_sums(x, lengths=lengths)
    # The oracle of many bins compares every pair with every edge.
    bins = int(numbers.choice([1, 90])) if lengths.max() > 200 else 1024
    within = pairwise_angle_histogram(x, lengths=lengths, bins=bins)
    between = pairwise_angle_histogram(x, y, lengths=lengths, y_lengths=others)
    guards.check()
    assert not cone_disagreements(x[:, None], lengths, {k: v[:, None] for k, v in cones.items()})
    for b, (n, m) in enumerate(zip(lengths.tolist(), others.tolist(), strict=True)):
        one = {name: value[b] for name, value in within.items()}
        assert not angle_disagreements(x[b, :n], None, one)
        both = {name: value[b] for name, value in between.items()}
        assert not angle_disagreements(x[b, :n], y[b, :m], both)


LENGTHS_OF_ROWS = [0, 1, 2, *around(6, 12, 16, 128, 1024, 1028, 4096)]


def rows_of_bases(
    numbers: Any, guards: Any
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Rows of bases, clean ones and others, end to end between guards."""
    lengths = numbers.choice(LENGTHS_OF_ROWS, 4)
    letters = [np.frombuffer(x, np.uint8) for x in (b"ACGT", b"ACGTacgtuN", b"ACGTNRY-*")]
    rows = [numbers.choice(letters[i % 3], n) for i, n in enumerate(lengths)]
    stops = np.cumsum(lengths)
    bases = guards.empty(int(stops[-1]), np.uint8)
    bases[:] = np.concatenate(rows)
    return [row.tobytes().decode() for row in rows], bases, stops - lengths, stops


@pytest.mark.parametrize("seed", sample(range(12), 6))
def test_kmers_stay_within_their_memory(seed: int, guards: Any) -> None:
    numbers = np.random.default_rng(seed)
    texts, bases, starts, stops = rows_of_bases(numbers, guards)
    k = int(numbers.choice([1, 2, 3, 4, 8, 9, 12, 16]))
    stride = int(numbers.choice([1, 2, k, k + 1, 1025]))
    kmers = {kmer for text in texts for kmer, _, _ in reference.kmers(text, k, stride, pad=True)}
    known = sorted(kmer for kmer in kmers if set(kmer) <= set("ACGTNRYSWKMBDHV"))[::2]
    table = KmerTable.build({kmer: 5 + i for i, kmer in enumerate(known)}, k, 1)
    counts = n_kmers(stops - starts, k, stride, pad=True)
    width = int(counts.max()) + 1
    ids = guards.empty((4, width), np.int32)
    ids.fill(-7)
    encode_kmers(bases, starts, stops, table, stride=stride, counts=counts, ids=ids, first=1)
    begins, ends = kmer_places(counts, stops - starts, k, stride, width=width, first=1)
    keys = kmer_keys(bases, k, stride, pad=True)
    other = reverse_complement(bases)
    ambiguous = count_ambiguous(bases, starts, stops)
    guards.check()
    for b, text in enumerate(texts):
        tokens = reference.kmer_tokens(text, table.vocabulary, k, stride, 1, pad=True)
        rest = [-7] * (width - 1 - len(tokens))
        assert ids[b].tolist() == [-7, *(token for token, _, _ in tokens), *rest]
        assert begins[b, 1 : 1 + counts[b]].tolist() == [begin for _, begin, _ in tokens]
        assert ends[b, 1 : 1 + counts[b]].tolist() == [end for _, _, end in tokens]
        assert ambiguous[b] == reference.count_ambiguous(text)
    whole = "".join(texts)
    expected = [kmer for kmer, _, _ in reference.kmers(whole, k, stride, pad=True)]
    plain = ["".join(c if c in "ACGTNRYSWKMBDHV" else "?" for c in kmer) for kmer in expected]
    assert unpack_kmers(keys, k) == plain
    assert pack_kmers(known, k).tolist() == table.keys.tolist()
    assert other.tobytes().decode() == reference.reverse_complement(whole)


@pytest.mark.parametrize("seed", sample(range(8), 4))
def test_split_and_single_tokens_stay_within_their_memory(seed: int, guards: Any) -> None:
    numbers = np.random.default_rng(50 + seed)
    _, bases, starts, stops = rows_of_bases(numbers, guards)
    k, room = int(numbers.choice([1, 2, 3, 6])), int(numbers.choice([0, 1, 64, 5000]))
    kmers = ["".join(letters) for letters in itertools.product("ACGT", repeat=k)]
    first = 2 if k == 1 else 10
    table = KmerTable.build({kmer: first + i for i, kmer in enumerate(kmers)}, k, 1)
    singles = single_table({"A": 2, "C": 3, "G": 4, "T": 5, "N": 6})
    found = []
    for impl in ("numba", "reference"):
        arrays = [guards.empty((4, room + 1), np.int32) for _ in range(3)]
        for array in arrays:
            array.fill(-7)
        tokens = encode_split(
            bases, starts, stops, table, singles,
            room=room, ids=arrays[0], begins=arrays[1], ends=arrays[2], first=1, impl=impl,
        )  # fmt: skip
        counts = np.minimum(stops - starts, room)
        ids = guards.empty((4, room + 1), np.int32)
        ids.fill(-7)
        misses = encode_singles(
            bases, starts, singles, 1, counts=counts, ids=ids, first=1, impl=impl
        )
        found.append([*arrays, tokens.lengths, tokens.n_unknown, tokens.truncated, ids, misses])
        guards.check()
    for ours, theirs in zip(*found, strict=True):
        assert (ours == theirs).all()
