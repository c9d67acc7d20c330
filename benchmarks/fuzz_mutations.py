"""Inputs that somebody could have written or damaged: trees of JSON values and bytes, altered."""

import json
import random
from collections.abc import Iterator
from typing import Any

INTEGERS = ("0", "-1", "1", "2147483648", "9223372036854775808", "-9223372036854775809")
NUMBERS = (*INTEGERS, "1e999", "-1e999", "1e-999", "NaN", "Infinity", "0.5", "9" * 4300, "9" * 5000)
TEXTS = (
    *("", " ", "\0", "\ud800", "\u202e", "\x1b[2J", "\ufeff", "\u2028", "a\r\nb"),
    *("../../x", "/etc/passwd", "~nobody-here/x", "a/b.yaml", "-", ".", "null", "NaN", "1e999"),
    *("9" * 5000, "\u0663", "2r", "999999999999999999r", "1e400GB", "python:x.py:f", "lm_eval:x"),
    *("(", "[", "(a+)+$", "(.*)*b", "(?:a|a)*c", "a{99999999999}", "(?P<a>x)(?P<a>y)", "(" * 3000),
    *(
        "{question}",
        "{options}",
        "{}",
        "{0}",
        "{question.__class__}",
        "%s",
        "{{ 7 * 7 }}",
        "${HOME}",
    ),
    *("=1+1", "</script>", "[bold]", "[/bold]", "#### 1e999"),
    *("!!python/object:os.system", "&a", "*a", "|", "? x", "all-linear", "attention"),
)
LONG_TEXTS = ("x" * 70_000, "[" * 70_000, "- 1 " * 20_000, "<<" * 30_000, " , a" * 20_000)
DEEP = ("[" * 3000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[[[]]]", '{"text": 3}')


class Raw(str):
    """A JSON text that is written as it is, so that it may be none."""


def hostile(rng: random.Random) -> Any:
    """A value that nobody expects at the place it is put."""
    choice = rng.random()
    if choice < 0.35:
        return Raw(rng.choice(NUMBERS))
    if choice < 0.74:
        return rng.choice(TEXTS)
    if choice < 0.75:
        return rng.choice(LONG_TEXTS)
    if choice < 0.77:
        return Raw(rng.choice(DEEP))
    return rng.choice([None, True, False, [], {}, [None], [[]], {"": ""}, [{}], ["a", "a"]])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or position) of everything in a tree."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def altered(tree: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy of a tree of JSON values with one to ``most`` changes."""
    whole = [json.loads(json.dumps(tree))]
    for _ in range(rng.randint(1, most)):
        found = list(places(whole))
        container, key = rng.choice(found)
        change_place(container, key, rng.choice(found), rng)
    return whole[0]


def change_place(container: Any, key: Any, other: tuple[Any, Any], rng: random.Random) -> None:
    value = container[key]
    match rng.randrange(8):
        case 0 | 1 | 2:
            container[key] = hostile(rng)
        case 3:
            container[key] = json.loads(json.dumps(plain(other[0][other[1]])))
        case 4 if isinstance(container, dict):
            del container[key]
        case 5 if isinstance(container, dict):
            container[str(rng.choice([*TEXTS, other[1]]))] = container.pop(key)
        case 6:
            container[key] = rng.choice([[value], {"text": value}, [value, value], str(value)[:99]])
        case _ if isinstance(value, dict):
            value[rng.choice(TEXTS)] = hostile(rng)
        case _ if isinstance(value, list):
            value.append(hostile(rng))
        case _:
            container[key] = hostile(rng)


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


PIECES = (
    *(
        b"\0",
        b"\xff",
        b"\xfe\xff",
        b"\xed\xa0\x80",
        b"\x80",
        b"\r",
        b"\n",
        b"\n\n",
        b"\t",
        b" " * 9,
    ),
    *(b'"', b"'", b",", b";", b":", b"[" * 3000, b"]", b"{", b"}", b"#", b"%YAML 9.9\n", b"---\n"),
    *(
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"!x ",
        b"<<: ",
        b"? ",
        b"| ",
        b"> ",
        b'"\\U99999999"',
    ),
    *(
        b"9" * 5000,
        b"1e999",
        b"\x1b[2J",
        b"\xe2\x80\xae",
        b"\xef\xbb\xbf",
        b"\x1f\x8b\x08",
        b"PK\x03\x04",
    ),
    *(b"PAR1", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f" * 8),
)


def damaged(content: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Bytes with up to ``most`` pieces flipped, inserted, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, most)):
        place = rng.randint(0, len(data))
        end = min(len(data), place + rng.choice([1, 2, 8, 64, 512]))
        match rng.randrange(6):
            case 0 | 1 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                data[place:place] = rng.choice(PIECES)
            case 3:
                del data[place:end]
            case 4:
                data[place:place] = data[place:end] * rng.choice([1, 2, 50])
            case _:
                data[place:end] = rng.choice(PIECES)
    if rng.random() < 0.05:
        del data[rng.randint(0, len(data)) :]
    return bytes(data)
