"""Structured output before a judge: varied schemas, the demo model's answers, `jsonschema`'s verdict."""
