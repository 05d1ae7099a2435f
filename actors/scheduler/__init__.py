"""The scheduler: which sequences run in the next step, and on which KV pages.

Read it from the inside out: `pages`, `radix`, `cache` (who holds which page), `sequence` (the states of a
life), `running` (slots and flights), `queue`, `estimate`, `sharing`, `batcher` (what goes into a
plan), `roles` and `core` (the one loop), `actor` (mail, ledger, board around it).
"""
