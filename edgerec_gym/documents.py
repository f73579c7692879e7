"""JSON and TOML documents: every one is read here, into a declared type (msgspec).

A document is checked before it is decoded: a regular file, of a bounded size, in UTF-8, not nested too deep.
Then its types are checked. Whatever is wrong is one line that names the file, the place in it
(`config.page_size`, `rows[3].mean`) and what is allowed. The types stand beside what they describe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgerec_gym.config import Config
from edgerec_gym.errors import InputError, closest, shown
from edgerec_gym.files import read_bytes

MOST_BYTES = 64 * 2**20  # of a document of results
SMALL = 2**20  # of a document that describes one thing, such as a run
MOST_DEPTH = 64
MOST_LINE = 1000  # characters in a line of TOML, whose keys may nest by dots
LARGEST = 2**63 - 1  # whole numbers

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=Config)

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_STEPS = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[(\.\.\.)\]")  # of a place, as msgspec writes it
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


class Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of documents whose fields are all known."""


class OpenDocument(msgspec.Struct, kw_only=True):
    """Base of documents that may hold more than the fields that this version reads."""


def read_document(path: str | Path, kind: type[T], *, most_bytes: int = SMALL) -> T:
    """Read a JSON document.

    Args:
        path: the file.
        kind: what it must hold: a :class:`Document`, or any type that msgspec knows.
        most_bytes: the largest size to accept.

    Raises:
        InputError: the file is missing, unreadable or no regular file, or holds something else.
    """
    return _typed(Path(path), _decoded(Path(path), most_bytes), kind)


def read_object(
    path: str | Path, kind: Any = None, *, most_bytes: int = SMALL, toml: bool = False
) -> dict[str, Any]:
    """Read a document that must be an object, as a plain dict with everything that is in it.

    Args:
        path: the file.
        kind: the fields to check, an :class:`OpenDocument`; None for none.
        most_bytes: the largest size to accept.
        toml: read TOML instead of JSON.

    Raises:
        InputError: as :func:`read_document`.
    """
    content = _decoded(Path(path), most_bytes, toml)
    checked: dict[str, Any] = _typed(Path(path), content, dict[str, Any])
    if kind is not None:
        _typed(Path(path), content, kind)
    return checked


def read_json(path: str | Path) -> dict[str, Any]:
    """Read any JSON object; InputError names the file and what is wrong."""
    return read_object(path, most_bytes=MOST_BYTES)


def decode(text: str | bytes, kind: type[T], where: str | Path) -> T:
    """Decode a JSON document that stands inside another file, `where`."""
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return _typed(where, _decoded_json(where, data), kind)


def check(path: str | Path, content: Any, kind: Any, place: str = "") -> None:
    """Check a part of a document, which stands at `place`; InputError names the file and what is wrong."""
    try:
        _typed("", content, kind)
    except InputError as error:
        name = str(error).removeprefix(": ").removeprefix("the document ")
        joint = "" if name.startswith("[") else " " if name.startswith("must") else "."
        raise InputError(f"{path}: {place}{joint if place else ''}{name}") from None


def config_from(kind: type[ConfigT], values: dict[str, Any], path: str | Path, place: str) -> ConfigT:
    """Build a config from a part of a document; InputError names the file, the part and the field."""
    try:
        return kind.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {place}: {error}") from None


def check_version(path: str | Path, found: int, supported: int) -> None:
    """Raise InputError unless a document has the schema version that this version of the package reads."""
    if found != supported:
        raise InputError(f"{path} has schema version {found}; this version reads {supported}")


def _decoded(path: Path, most_bytes: int, toml: bool = False) -> Any:
    data = read_bytes(path, most_bytes)
    return _decoded_toml(path, data) if toml else _decoded_json(path, data)


def _text(where: str | Path, data: bytes, name: str) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{where} is not valid {name}: it begins with a byte order mark")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not valid {name}: byte {error.start} is not UTF-8") from None


def _decoded_json(where: str | Path, data: bytes) -> Any:
    text = _text(where, data, "JSON")
    bare = _STRING.sub(b"", data)
    depth = max(accumulate(map(_STEP.__getitem__, bare.translate(None, _NOT_BRACKETS))), default=0)
    if depth > MOST_DEPTH:
        raise InputError(f"{where} is nested {depth} deep; allowed: up to {MOST_DEPTH}")
    try:
        content = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        _refuse(where, text, error)
    # A key that appears twice is lost in the content, so the number of colons tells.
    again = _STRING.sub(b"", msgspec.json.encode(content))
    if bare.count(b":") != again.count(b":") or re.search(rb"\d{19}", bare):
        _refuse(where, text)
    return content


def _decoded_toml(path: Path, data: bytes) -> Any:
    text = _text(path, data, "TOML")
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MOST_LINE:
            raise InputError(f"{path}: line {number} has {len(line):,} characters; allowed: {MOST_LINE:,}")
    try:
        content = msgspec.toml.decode(data)
    except RecursionError:
        raise InputError(f"{path} is nested too deep; allowed: up to {MOST_DEPTH}") from None
    except ValueError as error:  # also msgspec's, and a number of 5,000 digits
        raise InputError(f"{path} is not valid TOML: {_one_line(error)}") from None
    _find(path, content, lambda value: _too_large(value) if isinstance(value, int) else None)
    return content


class _Wrong(str):
    """A value that cannot be read; its text says why."""


def _too_large(value: int) -> _Wrong | None:
    return None if abs(value) <= LARGEST else _Wrong(f"is a whole number beyond {LARGEST} (2^63 - 1)")


def _refuse(where: str | Path, text: str, error: Exception | None = None) -> None:
    """Raise InputError if a document is malformed, repeats a key or has a number that cannot be read.

    The standard library is slower than msgspec, and can tell where this is.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                return _Wrong(f"has the key {shown(key)} twice")
            seen.add(key)
        return dict(pairs)

    def integer(digits: str) -> Any:
        if len(digits) > 20:
            return _Wrong(f"is a number of {len(digits.lstrip('-'))} digits; allowed: up to {LARGEST}")
        return _too_large(int(digits)) or int(digits)

    def number(digits: str) -> Any:
        value = float(digits)
        return _Wrong("is a number beyond 1.8e308; allowed: smaller ones") if value in _INFINITE else value

    def constant(name: str) -> Any:
        return _Wrong(f"is {name}; allowed: numbers and null")

    try:
        content = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=number, parse_constant=constant
        )
    except RecursionError:
        raise InputError(f"{where} is nested too deep; allowed: up to {MOST_DEPTH}") from None
    except ValueError as malformed:
        raise InputError(f"{where} is not valid JSON: {_one_line(malformed)}") from None
    _find(where, content, lambda value: value if isinstance(value, _Wrong) else None)
    if error is not None:
        raise InputError(f"{where} is not valid JSON: {_one_line(error)}") from None


_INFINITE = (float("inf"), float("-inf"))


def _find(where: str | Path, content: Any, wrong: Callable[[Any], str | None]) -> None:
    """Raise InputError at the first value that is wrong."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        steps, value = waiting.pop()
        if reason := wrong(value):
            raise InputError(f"{where}: {_named(steps) or 'the document'} {reason}")
        if isinstance(value, dict):
            waiting += [((*steps, key), part) for key, part in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*steps, k), part) for k, part in reversed(list(enumerate(value)))]


def _named(steps: tuple[Any, ...]) -> str:
    text = ""
    for step in steps:
        plain = isinstance(step, str) and step.replace("-", "_").isidentifier() and len(step) <= 80
        text += f".{step}" if plain else f"[{shown(step)}]"
    return text.removeprefix(".")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _typed(where: str | Path, content: Any, kind: Any) -> Any:
    """Convert decoded content to a type; InputError names the file, the place and what is allowed."""
    try:
        return msgspec.convert(content, kind)
    except RecursionError:
        raise InputError(f"{where} is nested too deep; allowed: up to {MOST_DEPTH}") from None
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        steps = _steps(content, place.removesuffix("`"), kind, str(error))
        raise InputError(_wrong_type(where, content, kind, text, steps)) from None


def _wrong_type(where: str | Path, content: Any, kind: Any, text: str, steps: tuple[Any, ...]) -> str:
    value = _at(content, steps)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{where}: {_named((*steps, missing[1]))} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        names = list(getattr(kind, "__struct_fields__", ())) if not steps else []
        hint = closest(unknown[1], names, "fields are")
        return f"{where}: unknown field {shown(_named((*steps, unknown[1])))}{hint}"
    name = _named(steps) or "the document"
    if wanted := re.match(r"Expected `([^`]*)`(.*)", text):
        kinds = " or ".join(_KINDS.get(part, part) for part in wanted[1].split(" | "))
        limit = wanted[2] if not wanted[2].startswith(", got") else ""
        return f"{where}: {name} must be {kinds}{limit}, got {shown(value)}"
    return f"{where}: {name} is wrong: {text[:1].lower()}{text[1:]}"


def _steps(content: Any, place: str, kind: Any, text: str) -> tuple[Any, ...]:
    """Return keys and indices of a place as msgspec writes it, which leaves out the keys of a dict."""
    steps: tuple[Any, ...] = ()
    for field, index, _ in _STEPS.findall(place):
        if field or index:
            steps += (field or int(index),)
            continue
        for key, value in _at(content, steps).items():
            try:
                msgspec.convert(_with(content, steps, {key: value}), kind)
            except msgspec.ValidationError as error:
                if str(error) == text:
                    steps += (key,)
                    break
        else:
            return steps
    return steps


def _at(content: Any, steps: tuple[Any, ...]) -> Any:
    for step in steps:
        content = content[step]
    return content


def _with(content: Any, steps: tuple[Any, ...], value: Any) -> Any:
    """Return the content with another value at a place."""
    if not steps:
        return value
    copy = content.copy()
    copy[steps[0]] = _with(content[steps[0]], steps[1:], value)
    return copy
