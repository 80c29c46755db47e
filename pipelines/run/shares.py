"""Shares of unknown and cut off tokens: one definition for run, status and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Share of unknown tokens above which they are the typical ones.
MOST_UNKNOWN = 0.5


@dataclass(frozen=True)
class Shares:
    """What a user must know of a run's tokens, in per cent of what is in final chunks.

    Attributes:
        unknown_tokens: unknown ones among the tokens that stand for bases.
        unknown_windows: windows flagged `unknown`, with more of them than --max-unknown.
        truncated_windows: windows of which tokens were cut off.

    Each is None where the counts do not say: nothing is written yet, or row groups were
    written by a version that did not count it.
    """

    unknown_tokens: float | None
    unknown_windows: float | None
    truncated_windows: float | None


def shares(counts: Mapping[str, int]) -> Shares:
    """The shares of unknown and truncated tokens, from the counts of a run."""

    def share(part: str, whole: str) -> float | None:
        if part not in counts or not counts.get(whole):
            return None
        return 100 * counts[part] / counts[whole]

    return Shares(
        share("unknown_tokens", "content_tokens"),
        share("unknown", "windows"),
        share("truncated_windows", "windows"),
    )


def mostly_unknown(unknown: int, tokens: int) -> bool:
    """Whether most of the tokens are unknown."""
    return unknown > MOST_UNKNOWN * tokens


def share_lines(counts: Mapping[str, int]) -> list[str]:
    """The shares for people, with a warning where they are large."""
    values = shares(counts)
    lines = [
        f"unknown tokens: {percent(values.unknown_tokens)}, "
        f"windows with too many of them: {percent(values.unknown_windows)}",
        f"windows cut off at the longest input: {percent(values.truncated_windows)}",
    ]
    if values.unknown_tokens is not None and mostly_unknown(
        counts["unknown_tokens"], counts["content_tokens"]
    ):
        lines.append(
            "warning: most tokens are unknown to the tokenizer, and the numbers say little about "
            "the sequences; choose another --model or --tokenizer"
        )
    if values.truncated_windows:
        lines.append(
            "warning: the bases behind the cut are in no window; give a smaller --window, or "
            "leave --window and --stride out"
        )
    return lines


def percent(value: float | None) -> str:
    """A share for people."""
    if value is None:
        return "not recorded"
    return "0 %" if value == 0 else f"{value:.3g} %"
