"""Chaos: actors are killed, stopped and paused at random while clients stream, and every answer is checked.

requests ─► reference run, no faults ─► texts
requests ─► run under the nemesis ────► receipts ─┐
                kill log ─────────────────────────┴─► checker ─► report
"""
