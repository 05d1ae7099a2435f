"""Attacks by command: fuzzers, disconnects and a timing probe against a company that others use meanwhile.

seed ─► case ─► the company's door ─► answer ─► judge ─┐
neighbours' streams, before and meanwhile ─► checker ──┼─► findings
processes, descriptors, memory, pages, slots ─► watch ─┘
"""
