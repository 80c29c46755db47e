"""The report of a store: one HTML page with figures and computed sentences.

`summary` reads the store, `figures` draws, `sections` puts figures and words together, `page` and
its `templates` are HTML, `build` makes the whole. Read `build` first. May import from: catalogue
and the rooms below.
"""
