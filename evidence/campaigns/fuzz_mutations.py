"""Strategies of inputs that somebody could have written or damaged: JSON trees and bytes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

INTEGERS = ("0", "-1", "1", "2147483648", "9223372036854775808", "-9223372036854775809")
NUMBERS = (*INTEGERS, "1e999", "-1e999", "1e-999", "NaN", "Infinity", "0.5", "9" * 4300, "9" * 5000)
TEXTS = (
    *("", " ", "\0", "\ud800", "\u202e", "\x1b[2J", "\ufeff", "\u2028", "a\r\nb"),
    *("../../x", "/etc/passwd", "~nobody-here/x", "a/b.yaml", "-", ".", "null", "NaN", "1e999"),
    *("9" * 5000, "\u0663", "2r", "999999999999999999r", "1e400GB", "python:x.py:f", "lm_eval:x"),
    *("(", "[", "(a+)+$", "(.*)*b", "(?:a|a)*c", "a{99999999999}", "(?P<a>x)(?P<a>y)", "(" * 3000),
    *("{question}", "{options}", "{}", "{0}", "{question.__class__}", "%s", "{{ 7 * 7 }}"),
    *("${HOME}", "=1+1", "</script>", "[bold]", "[/bold]", "#### 1e999"),
    *("!!python/object:os.system", "&a", "*a", "|", "? x", "all-linear", "attention"),
)
LONG_TEXTS = ("x" * 70_000, "[" * 70_000, "- 1 " * 20_000, "<<" * 30_000, " , a" * 20_000)
DEEP = ("[" * 3000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[[[]]]", '{"text": 3}')
PLAIN = (None, True, False, [], {}, [None], [[]], {"": ""}, [{}], ["a", "a"])
PIECES = (
    *(b"\0", b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\x80", b"\r", b"\n", b"\n\n", b"\t"),
    *(b'"', b"'", b",", b";", b":", b"[" * 3000, b"]", b"{", b"}", b"#", b" " * 9),
    *(b"%YAML 9.9\n", b"---\n", b"&a ", b"*a", b"!!python/name:os.system ", b"!x ", b"<<: "),
    *(b"? ", b"| ", b"> ", b'"\\U99999999"', b"9" * 5000, b"1e999", b"\x1b[2J", b"\xe2\x80\xae"),
    *(b"\xef\xbb\xbf", b"\x1f\x8b\x08", b"PK\x03\x04", b"PAR1", b"\xff" * 4, b"\0" * 4),
    b"\x7f" * 8,
)


class Raw(str):
    """A JSON text that is written as it is, so that it may be none."""


HOSTILE: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NUMBERS).map(Raw),
    st.sampled_from(TEXTS),
    st.sampled_from(PLAIN),
    st.text(max_size=9),
    st.sampled_from((*TEXTS, *LONG_TEXTS, *map(Raw, DEEP))),
)
"""Values that nobody expects at the place they are put."""


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys and positions on the way to everything in a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield (*path, key)
        yield from paths(tree[key], (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy in which ``change`` made a container, copied from the last one of ``path``, anew."""
    copy, (key, *rest) = tree.copy(), path
    if rest:
        copy[key] = changed(copy[key], tuple(rest), change)
        return copy
    return change(copy, key)


@st.composite
def altered(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """A copy of a tree of JSON values with one to ``most`` changes."""
    for _ in range(draw(st.integers(1, most))):
        if not (found := list(paths(tree))):
            break
        path, other = draw(st.sampled_from(found)), at(tree, draw(st.sampled_from(found)))
        value, new, name = at(tree, path), draw(HOSTILE), draw(st.sampled_from(TEXTS))
        wrapped = draw(st.sampled_from([[value], {"text": value}, [value, value], str(value)[:99]]))
        added = {**value, name: new} if isinstance(value, dict) else new
        added = [*value, new] if isinstance(value, list) else added
        kinds = ["remove", "rename"] if isinstance(path[-1], str) else []
        match draw(st.sampled_from(["replace", "copy", "wrap", "add", *kinds])):
            case "remove":
                tree = changed(tree, path, lambda c, k: {n: v for n, v in c.items() if n != k})
            case "rename":
                tree = changed(
                    tree, path, lambda c, k, to=name: {to if n == k else n: c[n] for n in c}
                )
            case kind:
                put = {"replace": new, "copy": plain(other), "wrap": wrapped, "add": added}[kind]
                tree = changed(tree, path, lambda c, k, put=put: with_item(c, k, put))
    return tree


def with_item(container: Any, key: Any, value: Any) -> Any:
    container[key] = value
    return container


def plain(value: Any) -> Any:
    """A copy without raw texts, which are no JSON."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, Raw) else value


def json_text(value: Any, ascii_only: bool = True) -> str:
    """JSON text, apart from the raw texts in it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k)}: {json_text(v, ascii_only)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(json_text(inner, ascii_only) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes, with up to four pieces flipped, inserted, removed or repeated."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4]))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([1, 2, 8, 64, 512, len(content)]))
        old, piece = content[start:end], draw(st.sampled_from(PIECES))
        flipped = bytes([(old[0] if old else 0) ^ 1 << draw(st.integers(0, 7))]) + old[1:]
        new = draw(st.sampled_from([flipped, piece, piece + old, b"", old * 2, old[:512] * 50]))
        content = content[:start] + new + content[end:]
    return content
