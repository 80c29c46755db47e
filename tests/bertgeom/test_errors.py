"""Errors cross processes whole."""

from __future__ import annotations

import pickle

from bertgeom.errors import InputError, MismatchError


def test_an_error_from_another_process_is_the_same() -> None:
    error = InputError("bases", "'!'", source="x.fa", record="r", line=3, remedy="mend it")
    found = pickle.loads(pickle.dumps(error))
    assert isinstance(found, InputError)
    assert (
        str(found) == str(error) == "x.fa, record 'r', line 3: expected bases, found '!'; mend it"
    )
    assert (found.source, found.record, found.line) == ("x.fa", "r", 3)
    other = pickle.loads(pickle.dumps(MismatchError("text")))
    assert (type(other), str(other)) == (MismatchError, "text")
