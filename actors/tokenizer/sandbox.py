"""Jinja for chat templates: transformers' dialect, in a sandbox whose values cannot grow without bound.

The dialect is that of transformers' `apply_chat_template`: trimmed blocks, `break` and `continue`, `tojson`
without HTML escapes, `raise_exception`, `strftime_now`, a `generation` block that marks nothing here.
A template comes from the model's directory and sees text of strangers, so beyond Jinja's own sandbox every
way to make a great value out of small ones is bounded: operators, `~`, filters, methods of
strings, and the output itself: to MAX_SIZE characters or items, and integers to MAX_BITS.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.compiler import CodeGenerator, Frame
from jinja2.utils import Namespace

MAX_SIZE = 8 * 1024 * 1024
MAX_BITS = 1 << 16

_WIDE = re.compile(r"[0-9]{7}")
_WIDTH_ARGUMENT = re.compile(r"%[^%a-z]*\*|:[^{}]*\{")
_PADDING_METHODS = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))
_COUNTING_FILTERS = frozenset(("batch", "center", "indent", "round", "slice", "tojson", "urlize", "wordwrap"))


class RaisedByTemplate(jinja2.TemplateError):
    """The template itself refused, by `raise_exception(sentence)`."""


class TooLarge(jinja2.TemplateError):
    """A value would pass MAX_SIZE."""

    def __init__(self) -> None:
        super().__init__(f"a value or the text would exceed {MAX_SIZE} characters")


def _check(size: int) -> None:
    if size > MAX_SIZE:
        raise TooLarge


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooLarge


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_numbers(*values: object) -> None:
    """A number that is a width, a count or an indent must not be great."""
    for value in values:
        if isinstance(value, int):
            _check(abs(value))
        elif isinstance(value, tuple):
            _check_numbers(*value)


def _check_format(form: object, *values: object) -> None:
    """Widths in a format string, and widths that it takes from its arguments."""
    if isinstance(form, str):
        if _WIDE.search(form):
            raise TooLarge
        if _WIDTH_ARGUMENT.search(form):
            _check_numbers(*values)


def _check_operator(operator: str, left: object, right: object) -> None:
    match operator:
        case "+":
            _check(_size(left) + _size(right))
        case "*":
            _check(_size(left) * abs(right) if isinstance(right, int) else 0)
            _check(_size(right) * abs(left) if isinstance(left, int) else 0)
            _check_bits(_bits(left) + _bits(right))
        case "**":
            _check_bits(_bits(left) * abs(right) if isinstance(right, int) else 0)
        case _:
            _check_format(left, right)


def _joined(separator: object, items: object) -> int:
    if not isinstance(items, list | tuple | dict):
        return 0
    return sum(_size(item) for item in items) + _size(separator) * len(items)


def _check_method(name: str, text: str, args: tuple[object, ...]) -> None:
    """Before a method of a string runs."""
    match name, args:
        case "replace", (str(old), str(new), *_):
            _check(len(text) + text.count(old) * len(new))
        case "join", (items,):
            _check(_joined(text, items))
        case (("format" | "format_map"), _):
            _check_format(text, *args)
        case _ if name in _PADDING_METHODS:
            _check_numbers(*args)
        case _:
            pass


def _check_filter(name: str, value: object, args: tuple[object, ...]) -> None:
    """Before a filter runs."""
    if name in _COUNTING_FILTERS:
        _check_numbers(*args)
    elif name == "join":
        _check(_joined(args[0] if args else "", value))
    elif name == "format":
        _check_format(value, *args)
    elif name == "replace" and isinstance(value, str):
        _check_method(name, value, args)


def _bounded(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name` with its arguments checked before it runs."""
    at = int(hasattr(run, "jinja_pass_arg"))

    @functools.wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        value = list(args[at]) if name == "join" else args[at]
        _check_filter(name, value, (*args[at + 1 :], *kwargs.values()))
        return run(*args[:at], value, *args[at + 1 :], **kwargs)

    return checked


class _BoundedCode(CodeGenerator):
    """`a ~ b` goes through the environment, as the intercepted operators do."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:
        """Write the call."""
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is rendered, no more."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A block of its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """`namespace()` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace cannot hold names that begin with an underscore")


class _SafeDict:
    """`dict(...)` and `dict.fromkeys(...)`, and no other attribute of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(keys, value)


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of all chat templates. now: the clock behind `strftime_now`."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(name, run) for name, run in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: now().strftime(form)
        self.globals["dict"] = _SafeDict()
        self.globals["namespace"] = _SafeNamespace
        del self.globals["lipsum"]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, unless its result would be too large."""
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: tuple[object, ...]) -> str:
        """`a ~ b ~ c`."""
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call; a string's methods are looked at first."""
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(method.__name__, owner, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """The template's text; TooLarge as soon as it passes MAX_SIZE."""
    return "".join(_up_to_limit(template.generate(values)))


def _up_to_limit(parts: Iterator[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        _check(size)
        yield part
