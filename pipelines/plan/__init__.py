"""Planning: windows, partitions, batches, cost and memory, before anything is computed.

`partitions` holds the plan, `token_windows` cuts by tokens where tokens differ in length, `cost`
is arithmetic, memory and disk, `sampling` draws windows. Read `partitions` first.
May import from: `bertgeom`. Reads and writes no run.
"""
