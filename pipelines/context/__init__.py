"""The context of a run: its folder, who may write there, and what a process holds of it.

`facts` says what a run is, `folder` keeps the books (facts, history, records of completion),
`run_context` opens them with plan and model, `events` says what happens; `claims`, `leases` and
`restart` decide who may write.
Read `folder` first. May import from: plan and `bertgeom`.
"""
