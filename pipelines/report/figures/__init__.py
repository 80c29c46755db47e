"""Figures of a store, drawn from its `Summary`: pure functions that return matplotlib figures.

`heads` gates, reach, maps; `cones` cone and angles; `stream` moments and spectra; `cohorts`
differences between labels; `regions` attention on annotated regions; `style` palette and SVG.
May import from: `pipelines.report.summary`. Read `style` first.
"""
