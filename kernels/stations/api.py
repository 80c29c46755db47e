"""All statistics of residual stations in one call: cones, stream, and pairwise angles."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from bertgeom.kernels._definitions import STATION_BINS
from bertgeom.kernels._dispatch import resolve
from bertgeom.kernels._valid import check_vectors, valid_rows


def station_statistics(
    x: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    angles: bool,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """The statistics of `cone_sums`, `stream_moments` and, optionally, of pairwise angles.

    One Gram matrix, tile by tile, serves the angles and the participation ratio, and x is read
    once while it is in the cache.

    Args:
        x: (B, N, D) float32, float16 or bfloat16, any strides.
        lengths: (B,) integers; the first lengths[b] of the N rows are valid. Default: all.
        mask: (B, N) bool, or 0 and 1; the valid rows, in any place, instead of `lengths`.
        angles: whether to compute angle_histogram (90 bins), angle_mean, angle_std, angle_min,
            angle_max over all pairs, too.
        impl: "auto", "triton", "numba" or "reference".

    Returns:
        The arrays of `cone_sums`, `stream_moments` and `pairwise_angle_histogram` but n_pairs,
        (B,) or (B, 90).

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for wrong shapes.
        ImplementationUnavailableError: where `impl` cannot run.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import station_statistics
        >>> found = station_statistics(torch.randn(2, 30, 16), angles=True)
        >>> found["angle_histogram"].sum(-1).tolist()  # 30 * 29 / 2 pairs
        [435, 435]
    """
    found = statistics_of_stations([x], lengths=lengths, mask=mask, angles=[angles], impl=impl)
    return {name: value[0] for name, value in found.items()}


def statistics_of_stations(
    stations: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    angles: Sequence[bool],
    impl: str = "auto",
) -> dict[str, Tensor]:
    """`station_statistics` of several stations of the residual stream.

    On the CPU one call for many stations gives every thread a window of its own and starts the
    threads only once; with few windows at a time threads wait for each other.

    Args:
        stations: S tensors (B, N, D), of one shape, dtype and device.
        lengths, mask: of the windows, the same at every station.
        angles: whether to compute the angles, by station.
        impl: as in `station_statistics`.

    Returns:
        The arrays of `station_statistics`, (S, B) or (S, B, 90); those of the angles have
        only the stations with angles, in their order.

    Raises:
        TypeError, ValueError, ImplementationUnavailableError: as `station_statistics`.

    Example:
        >>> import torch
        >>> from bertgeom.kernels import statistics_of_stations
        >>> stations = [torch.randn(2, 30, 16) for _ in range(3)]
        >>> found = statistics_of_stations(stations, angles=[True, False, True])
        >>> found["cone_index"].shape, found["angle_mean"].shape
        (torch.Size([3, 2]), torch.Size([2, 2]))
    """
    if not stations or len(stations) != len(angles):
        raise ValueError(
            f"expected stations, and angles for each, found {len(stations)} and {len(angles)}"
        )
    for x in stations:
        check_vectors("x", x)
        if x.dim() != 3:
            raise ValueError(f"x: expected (B, N, D), found shape {tuple(x.shape)}")
        if x.shape != stations[0].shape:
            raise ValueError(
                f"x: expected the shape of the first station, {tuple(stations[0].shape)}, "
                f"found {tuple(x.shape)}"
            )
    name = resolve(impl, *stations, lengths, mask)
    with torch.no_grad():
        first = stations[0][:, None]
        rows, counts = valid_rows("x", first, lengths, mask, clamp=name != "triton")
        states = [rows[:, 0], *stations[1:]]
        if mask is not None:
            states[1:] = [valid_rows("x", x[:, None], None, mask)[0][:, 0] for x in stations[1:]]
        if name == "numba":
            from bertgeom.kernels.stations import cpu

            return cpu.station_statistics(states, counts, list(angles))
        one = _ONE[name]
        return _stacked([one(x, counts, a) for x, a in zip(states, angles, strict=True)])


def _stacked(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        # A view: on a GPU every copy is a kernel launch.
        return {name: value[None] for name, value in parts[0].items()}
    names = max(parts, key=len)
    return {name: torch.stack([part[name] for part in parts if name in part]) for name in names}


def _by_triton(x: Tensor, lengths: Tensor, angles: bool) -> dict[str, Tensor]:
    gpu = importlib.import_module(f"{__package__}.gpu.run")
    found: dict[str, Tensor] = gpu.station_statistics(x, lengths, angles)
    return found


def _by_reference(x: Tensor, lengths: Tensor, angles: bool) -> dict[str, Tensor]:
    cones = importlib.import_module("bertgeom.kernels.cone_angles.reference")
    stream = importlib.import_module(f"{__package__}.reference")
    found: dict[str, Tensor] = {
        key: value[:, 0] for key, value in cones.cone_sums(x[:, None], lengths, True).items()
    }
    found |= stream.stream_moments(x, lengths)
    if angles:
        found |= cones.pairwise_angle_histogram(x, None, lengths, None, STATION_BINS)
        del found["n_pairs"]
    return found


_ONE = {"triton": _by_triton, "reference": _by_reference}
