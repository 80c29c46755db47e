"""The tables of `FORMAT.md` and of the page of architectures, written from the declarations.

`python -m bertgeom.formatdoc` in a checkout rewrites them after a change of `bertgeom.variables`
or of the table of architectures; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bertgeom import variables
from bertgeom.model.architectures import ARCHITECTURES, UNSUPPORTED
from bertgeom.sequences.shards import BASES, TABLE
from bertgeom.store.layout import Layout, Shape, missing_value
from bertgeom.variables import Variable

PATH = Path(__file__).with_name("FORMAT.md")
#: In a checkout only.
ARCHITECTURES_PATH = Path(__file__).parents[1] / "docs/reference/architectures.md"
_BEGIN, _END = "<!-- begin {} -->", "<!-- end {} -->"


def array_table() -> str:
    """All arrays of the root group."""
    rows = [
        "| array | dimensions | type | unit | missing | tier | meaning | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for v in variables.VARIABLES.values():
        tier = f"`--keep {v.keep}`" if v.keep else v.tier
        dims = ", ".join(v.dims)
        rows.append(
            f"| `{v.name}` | {dims} | {v.dtype} | {v.unit} | {_missing(v)} | {tier} "
            f"| {_text(v.description)} | {v.source} |"
        )
    return "\n".join(rows)


def coordinate_table() -> str:
    """All coordinates of the root group."""
    shape = Shape(1, 1, 1, ("class",), 512, keep=variables.KEEP, group_names=("group",))
    rows = ["| array | dimension | unit | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{c.name}` | {c.dim} | {c.unit} | {c.description} |"
        for c in Layout(shape, 1, 1).coordinates
    ]
    return "\n".join(rows)


def weight_table() -> str:
    """Arrays of the model's weights, without windows."""
    return _plain_table(variables.WEIGHT_VARIABLES)


def spectrum_table() -> str:
    """Arrays of the group of sampled windows' spectra."""
    return _plain_table(variables.SPECTRUM_VARIABLES)


def _plain_table(declared: tuple[Variable, ...]) -> str:
    rows = ["| array | dimensions | type | unit | meaning | source |", "|---|---|---|---|---|---|"]
    rows += [
        f"| `{v.name}` | {', '.join(v.dims)} | {v.dtype} | {v.unit} | {_text(v.description)} "
        f"| {v.source} |"
        for v in declared
    ]
    return "\n".join(rows)


def flag_table() -> str:
    """The bits of `flags`."""
    rows = ["| bit | name | meaning |", "|---|---|---|"]
    rows += [f"| {1 << i} | {name} | {text} |" for i, (name, text) in enumerate(_flags())]
    return "\n".join(rows)


def sequence_table() -> str:
    """The arrays of sequence shards."""
    rows = ["| array | dimension | type | unit | meaning |", "|---|---|---|---|---|"]
    for name, (dtype, unit, text) in TABLE.items():
        rows.append(f"| `{name}` | record | {dtype} | {unit} | {text} |")
    dtype, unit, text = BASES
    return "\n".join([*rows, f"| `bases` | base | {dtype} | {unit} | {text} |"])


def architecture_table() -> str:
    """All declared architectures."""
    rows = [
        "| architecture | `model_type` | layers | stream after attention | final norm | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for a in ARCHITECTURES:
        kind = "pre-norm" if a.pre_norm else "post-norm"
        final = f"`{a.final_norm}`" if a.final_norm else "none"
        remarks = "; ".join(filter(None, ["adapter" if a.adapters else "", a.note]))
        rows.append(
            f"| {a.name} | {_code(a.model_types)} | {_code(a.layers)} | {kind}: "
            f"{a.station.replace(a.norm, f'`{a.norm}`')} | {final} | {_text(remarks)} |"
        )
    return "\n".join(rows)


def unsupported_table() -> str:
    """Model types that are refused, and why."""
    rows = ["| `model_type` | reason |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{kind}` | {why} |" for kind, why in UNSUPPORTED.items())])


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES = {
    "arrays": array_table,
    "coordinates": coordinate_table,
    "weights": weight_table,
    "spectra": spectrum_table,
    "flags": flag_table,
    "sequences": sequence_table,
}


ARCHITECTURE_TABLES = {"architectures": architecture_table, "unsupported": unsupported_table}


def with_tables(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """The document with all tables between their marks rewritten.

    Raises:
        ValueError: if the marks of a table are missing.
    """
    for name, table in tables.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"expected one {begin} and one {end}")
        head, rest = text.split(begin)
        tail = rest.split(end)[1]
        text = f"{head}{begin}\n{table()}\n{end}{tail}"
    return text


def _missing(variable: Variable) -> str:
    value = missing_value(variable)
    if variable.kind == "window" and variable.name != "label" and "token" not in variable.dims:
        return "never"
    return "NaN" if value != value else str(value)


def _text(words: str) -> str:
    return words.replace("|", "\\|")


def _flags() -> list[tuple[str, str]]:
    return list(variables.FLAGS.items())


if __name__ == "__main__":
    for path, tables in ((PATH, TABLES), (ARCHITECTURES_PATH, ARCHITECTURE_TABLES)):
        path.write_text(with_tables(path.read_text("utf-8"), tables), "utf-8")
