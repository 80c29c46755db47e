"""The report of a store: one HTML page with figures and computed sentences.

`summary` reads the store, `figures` draws, `sections` puts figures and words together, `page` is
HTML, `build` makes the whole. Read `build` first. May import from: catalogue and the rooms below.
"""
