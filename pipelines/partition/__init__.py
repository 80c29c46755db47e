"""One partition: read and tokenise ahead, measure, sum, write.

`measure` gives the results of a partition, `write` brings them into the store; `cohort_sums`,
`record_means` and `sampled_spectra` are what is kept beside the arrays of windows.
Read `measure` first, then `write`. May import from: context, plan and `bertgeom`.
"""
