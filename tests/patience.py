"""How long the tests wait for what must happen."""

from __future__ import annotations

PATIENCE = 60.0
"""Seconds that anything may take on a machine that is busy with other things: only a test that fails waits
so long."""
