"""Declared arrays: what a window is, its regions, the places of its tokens, model outputs."""

from __future__ import annotations

from bertgeom.variables.declaration import OWN, PAPER, VIG, Variable

WINDOW_VARIABLES: tuple[Variable, ...] = tuple(
    Variable(name, ("window",), dtype, unit, description, kind="window", source=OWN)
    for name, dtype, unit, description in (
        ("record_index", "uint32", "1", "index of the record in the record table"),
        ("record_id", "string", "1", "id of the record; ids may repeat"),
        ("start", "uint64", "base", "first base of the window in its record, 0-based"),
        ("stop", "uint64", "base", "one past the last base of the window in its record"),
        ("strand", "int8", "1", "+1 as in the record, -1 reverse complement"),
        ("n_tokens", "uint32", "token", "valid tokens, special ones included"),
        ("n_unknown", "uint32", "token", "tokens that the tokenizer maps to its unknown token"),
        ("n_ambiguous", "uint32", "base", "bases of the window that are not A, C, G, T or U"),
        ("truncated", "bool", "1", "whether tokens were cut off at the model's maximum length"),
        ("flags", "uint16", "1", "bit field, see flag_meanings"),
        ("label", "int32", "1", "code of the window's label, -1 without one"),
    )
)

REGION_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "group_tokens",
        ("window", "group"),
        "uint32",
        "token",
        "tokens in each group; divided by n_tokens, the share of attention a region gets by chance",
        kind="window",
        source=VIG,
    ),
)

TRACK_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "token_start",
        ("window", "token"),
        "int32",
        "base",
        "first base of the token in its record minus the window's start; -1: no bases",
        tier="full",
        kind="window",
        keep="tracks",
        source=OWN,
    ),
    Variable(
        "token_stop",
        ("window", "token"),
        "int32",
        "base",
        "one past the last base of the token minus the window's start; -1: no bases",
        tier="full",
        kind="window",
        keep="tracks",
        source=OWN,
    ),
)

OUTPUT_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "cls",
        ("window", "hidden_state", "hidden"),
        "float16",
        "1",
        "vector of the first token after the embedding and after every layer",
        kind="output",
        keep="cls",
        source=PAPER,
    ),
    Variable(
        "logits",
        ("window", "class"),
        "float32",
        "1",
        "class logits of the model's head",
        kind="output",
        keep="logits",
        source=PAPER,
    ),
)
