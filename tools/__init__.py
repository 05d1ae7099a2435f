"""Everything around the engine: command line, benchmarks, fault injection, the demo model."""
