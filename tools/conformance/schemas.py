"""Varied JSON schemas, made from a seed: what users write, in combinations that nobody wrote down."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_WORDS = ("name", "count", "tags", "when", "note", "size", "kind", "owner", "price", "path", "ok", "x")
_PATTERNS = ("[A-Z]{2}[0-9]{3}", "[a-z]+(-[a-z]+){1,2}", "(red|green|blue)", "[0-9]{4}", "v[0-9]\\.[0-9]")
_FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname")
_DEPTH = 3


def schema_of(seed: int) -> Schema:
    """Schema number `seed`, always the same; any value that fits it is short."""
    maker = _Maker(random.Random(seed))
    found = maker.root(seed)
    return {**found, "$defs": maker.defs} if maker.defs else found


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.defs: dict[str, Schema] = {}

    def root(self, seed: int) -> Schema:
        """Each kind is the outermost one of some schemas; most are objects."""
        kinds = (*self._kinds(), self.object, self.object, self.array)
        return kinds[seed % len(kinds)](_DEPTH)

    def any(self, depth: int) -> Schema:
        kinds = self._kinds() if depth else self._leaves()
        return self._rng.choice(kinds)(depth - 1)

    def _leaves(self) -> tuple[Callable[[int], Schema], ...]:
        return (
            self.string,
            self.pattern,
            self.format,
            self.integer,
            self.number,
            self.enum,
            self.const,
            self.boolean,
            self.null,
            self.nullable,
        )

    def _kinds(self) -> tuple[Callable[[int], Schema], ...]:
        inner = (self.object, self.array, self.tuple, self.any_of, self.ref, self.map, self.all_of, self.tree)
        return (*self._leaves(), *inner)

    def string(self, _: int) -> Schema:
        least = self._rng.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + self._rng.randint(1, 12)}

    def pattern(self, _: int) -> Schema:
        return {"type": "string", "pattern": f"^{self._rng.choice(_PATTERNS)}$"}

    def format(self, _: int) -> Schema:
        return {"type": "string", "format": self._rng.choice(_FORMATS)}

    def integer(self, _: int) -> Schema:
        low = self._rng.randint(-50, 500)
        ends = self._rng.choice((("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")))
        return {"type": "integer", ends[0]: low, ends[1]: low + self._rng.randint(2, 900)}

    def number(self, _: int) -> Schema:
        low = self._rng.randint(-5, 5)
        return {"type": "number", "minimum": low, "maximum": low + self._rng.randint(1, 90) + 0.5}

    def enum(self, _: int) -> Schema:
        values: list[Any] = ["a", "two words", 'q"uote', "é", 1, 2.5, True, None, "back\\slash"]
        return {"enum": self._rng.sample(values, self._rng.randint(1, 5))}

    def const(self, _: int) -> Schema:
        return {"const": self._rng.choice(["fixed", 7, True, None, {"k": [1, "b"]}, []])}

    def boolean(self, _: int) -> Schema:
        return {"type": "boolean"}

    def null(self, _: int) -> Schema:
        return {"type": "null"}

    def nullable(self, _: int) -> Schema:
        return {"type": ["integer", "null"], "minimum": 0, "maximum": 99}

    def object(self, depth: int) -> Schema:
        names = self._rng.sample(_WORDS, self._rng.randint(1, 4))
        required = [name for name in names if self._rng.random() < 0.7]
        return {
            "type": "object",
            "properties": {name: self.any(depth) for name in names},
            "required": required,
            "additionalProperties": False,
        }

    def map(self, depth: int) -> Schema:
        return {"type": "object", "additionalProperties": self.any(0), "maxProperties": 2}

    def array(self, depth: int) -> Schema:
        least = self._rng.randint(0, 2)
        most = least + self._rng.randint(0, 2)
        return {"type": "array", "items": self.any(depth), "minItems": least, "maxItems": most}

    def tuple(self, depth: int) -> Schema:
        parts = [self.any(0) for _ in range(self._rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.any(depth) for _ in range(self._rng.randint(2, 3))]}

    def all_of(self, _: int) -> Schema:
        first, second = self._rng.sample(_WORDS, 2)
        return {
            "allOf": [
                {"type": "object", "properties": {first: {"type": "boolean"}}, "required": [first]},
                {"properties": {second: self.integer(0)}, "required": [second]},
            ],
            "maxProperties": 2,
        }

    def ref(self, depth: int) -> Schema:
        name = f"d{len(self.defs)}"
        self.defs[name] = {}
        self.defs[name] = self.any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def tree(self, _: int) -> Schema:
        """It holds itself, though seldom for long."""
        name = f"t{len(self.defs)}"
        branch = {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "maxItems": 1}
        self.defs[name] = {
            "type": "object",
            "properties": {"leaf": self.enum(0), "more": branch},
            "required": ["leaf"],
            "additionalProperties": False,
        }
        return {"$ref": f"#/$defs/{name}"}
