"""Schedulers in virtual time, for `tools.simulate` and for tests."""
