"""Declared arrays: singular values and eigenvalues of sampled windows."""

from __future__ import annotations

from bertgeom.variables.declaration import OWN, PAPER, Variable


def _spectrum(
    name: str,
    unit: str,
    description: str,
    *extra: str,
    dtype: str = "float32",
    source: str = OWN,
    head: bool = True,
) -> Variable:
    dims = ("sample", "layer", "head", *extra) if head else ("sample", "layer", *extra)
    return Variable(name, dims, dtype, unit, description, "full", "spectrum", "spectra", source)


#: Spectra of a head; `logit` is Q K^T without scale, of which d values can be nonzero.
SPECTRA = ("attention", "value", "head", "logit")

#: For sampled windows only (`--spectra`). Values that a shorter window lacks are NaN.
SPECTRUM_VARIABLES: tuple[Variable, ...] = (
    _spectrum(
        "attention_singular_values", "1", "singular values of A, descending", "token_component"
    ),
    _spectrum("value_singular_values", "1", "singular values of V, descending", "head_component"),
    _spectrum(
        "head_singular_values", "1", "singular values of Z = A V, descending", "head_component"
    ),
    _spectrum(
        "logit_singular_values", "1", "singular values of Q K^T, descending", "head_component"
    ),
    _spectrum(
        "spectrum_rank", "1", "numerical rank (numpy's rule, float32)", "spectrum", dtype="int32"
    ),
    _spectrum("spectrum_small", "1", "singular values below 1e-3", "spectrum", dtype="int32"),
    _spectrum(
        "spectrum_condition",
        "1",
        "largest over smallest singular value",
        "spectrum",
        dtype="float64",
    ),
    _spectrum("spectral_entropy", "nat", "-sum p ln p with p = s^2 / sum s^2", "spectrum"),
    _spectrum(
        "logit_eigenvalues_real",
        "1",
        "real parts of the eigenvalues of Q K^T, by falling absolute value",
        "head_component",
    ),
    _spectrum(
        "logit_eigenvalues_imaginary",
        "1",
        "imaginary parts of the eigenvalues of Q K^T, in the order of the real parts",
        "head_component",
    ),
    _spectrum(
        "logit_symmetric_eigenvalues",
        "1",
        "eigenvalues of the symmetric part of Q K^T, ascending",
        "symmetric_component",
    ),
    _spectrum(
        "paper_von_neumann_entropy",
        "nat",
        "-sum p ln p with p the absolute eigenvalues of Q K^T over their 2-norm",
        source=PAPER,
    ),
    _spectrum(
        "paper_shannon_entropy",
        "nat",
        "entropy of all weights of the head in 20 equal bins between their extremes",
        source=PAPER,
    ),
    _spectrum(
        "output_singular_values",
        "1",
        "singular values of the layer output, descending",
        "output_component",
        head=False,
    ),
    _spectrum(
        "output_spectrum_rank",
        "1",
        "numerical rank of the layer output (numpy's rule, float32)",
        dtype="int32",
        head=False,
    ),
    _spectrum(
        "output_spectrum_small",
        "1",
        "singular values of the layer output below 1e-3",
        dtype="int32",
        head=False,
    ),
    _spectrum(
        "output_spectrum_condition",
        "1",
        "largest over smallest singular value of the layer output",
        dtype="float64",
        head=False,
    ),
    _spectrum(
        "output_spectral_entropy",
        "nat",
        "-sum p ln p with p = s^2 / sum s^2 of the layer output",
        head=False,
    ),
)
