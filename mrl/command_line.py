"""What is typed after ``python train.py`` and ``python eval.py``, and commands that are printed.

Hydra reads ``KEY=VALUE`` by a grammar of its own: ``name=3.10`` would be stored as 3.1, and a path
with an ``=``, a bracket or a letter outside ASCII is refused unless it stands in quotes, which the
shell must leave there.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from shutil import which
from types import NoneType
from typing import Any, get_args

_PLAIN = re.compile(r"[A-Za-z0-9_./%+-]+")  # what needs no quotes
_SWEEPS = ("-m", "--multi", "hydra.mode=")
_QUOTES = ("'", '"')
# Functions of the grammar whose arguments may be text; those of the others are numbers.
_OF_TEXT = ("choice", "shuffle", "str")


class CommandLineError(ValueError):
    """A word that cannot be read as it stands; the message says how to write it."""


def as_typed(words: Sequence[str], schema: type) -> list[str]:
    """``words`` for Hydra, with quotes around what it would not keep as it was typed.

    Args:
        words: of the command line, without the script.
        schema: dataclass of the config that they are for.

    Raises:
        CommandLineError: if the value of such a key is not in Hydra's grammar.
    """
    nullable = text_keys(schema)
    sweeps = any(word.startswith(_SWEEPS) for word in words)
    read = []
    for word in words:
        key, equals, value = word.partition("=")
        name = key.lstrip("+")
        if equals and name in nullable:
            _check_readable(key, value, sweeps=sweeps)
            word = f"{key}={_quoted_literals(value, null_too=not nullable[name])}"
        read.append(word)
    return read


def text_keys(schema: type, section: str = "") -> dict[str, bool]:
    """The dotted keys of ``schema`` for text, or lists of it, and whether null unsets them."""
    keys = {}
    for f in fields(schema):
        key, parts = f"{section}{f.name}", _parts(f.type)
        if str in parts or f.metadata.get("text"):
            keys[key] = str not in parts or NoneType in parts
        for part in parts:
            if isinstance(part, type) and is_dataclass(part):
                keys |= text_keys(part, f"{key}.")
    return keys


def _parts(annotation: Any) -> set[Any]:
    """``list[str] | None`` -> {str, NoneType}."""
    inner = get_args(annotation)
    return set().union(*map(_parts, inner)) if inner else {annotation}


def override(key: str, text: object) -> str:
    """``KEY=TEXT`` as one word of a command, to be printed: shell and Hydra read just ``text``."""
    text = str(text)
    if _PLAIN.fullmatch(text) and text.lower() != "null":
        return f"{key}={text}"
    return shlex.quote(f"{key}={_quoted(without_references(text))}")


def without_references(text: str) -> str:
    """``text`` for OmegaConf to read as it is, also where ``${`` would refer to another key."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def launcher_fault(words: Sequence[str]) -> str | None:
    """Why the launcher that the command line names cannot work here."""
    launchers = [word for word in words if "launcher=submitit" in word]
    if launchers and find_spec("submitit") is None:
        return "this launcher needs a package: pip install hydra-submitit-launcher"
    if any("submitit_slurm" in word for word in launchers) and which("srun") is None:
        return (
            "this launcher needs SLURM, and there is no srun here: use it on a machine of the "
            "cluster, or hydra/launcher=submitit_local on this one"
        )
    return None


def _check_readable(key: str, value: str, *, sweeps: bool) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    word = f"{key}={value}"
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException as error:
        cure = shlex.quote(f"{key}={_quoted_elements(value, sweeps=sweeps)}")
        raise CommandLineError(
            f"{word} has signs or letters that need quotes around the value, inside those of the "
            f"shell: {cure}"
        ) from error
    if parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP and not sweeps:
        raise CommandLineError(
            f"{word} has several values: with -m there is a run for each; a value with a comma "
            f"needs quotes: {shlex.quote(f'{key}={_quoted(value)}')}"
        )


def _quoted_elements(value: str, *, sweeps: bool) -> str:
    """``value`` with quotes around it, or around each part of what looks like a list."""
    if value.startswith("[") and value.endswith("]"):
        return f"[{_quoted_elements(value[1:-1], sweeps=True)}]"
    parts = [part.strip() for part in value.split(",")] if sweeps else [value]
    return ",".join(part if part.startswith(_QUOTES) else _quoted(part) for part in parts)


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()


def _quoted_literals(value: str, *, null_too: bool) -> str:
    """``value`` with quotes around the numbers and truth values in it, and around null if so said.

    They stand alone, or in a list or sweep: ``3.10``, ``[1e5,a]``, ``choice(true,x)``.
    """
    from hydra.grammar.gen.OverrideLexer import OverrideLexer as Lexer

    literals = {Lexer.INT, Lexer.FLOAT, Lexer.BOOL, *([Lexer.NULL] if null_too else [])}
    starts = {None, Lexer.COMMA, Lexer.BRACKET_OPEN, Lexer.POPEN}
    ends = {None, Lexer.COMMA, Lexer.BRACKET_CLOSE, Lexer.PCLOSE}
    tokens = _tokens(value)
    kinds = [None, *(kind for kind, _ in tokens), None]
    functions: list[str] = []
    words = []
    for i, (kind, text) in enumerate(tokens):
        if kind == Lexer.POPEN:
            functions.append(tokens[i - 1][1])
        elif kind == Lexer.PCLOSE:
            functions.pop()
        alone = kind in literals and kinds[i] in starts and kinds[i + 2] in ends
        words.append(_quoted(text) if alone and {*functions} <= {*_OF_TEXT} else text)
    return "".join(words)


def _tokens(value: str) -> list[tuple[int, str]]:
    """Kind and text of the tokens of Hydra's grammar, without spaces at the ends."""
    from antlr4 import InputStream
    from hydra.grammar.gen.OverrideLexer import OverrideLexer

    lexer = OverrideLexer(InputStream(value))
    lexer.mode(OverrideLexer.VALUE_MODE)
    tokens = [(token.type, token.text) for token in lexer.getAllTokens()]
    for end in (0, -1):
        if tokens and tokens[end][0] == OverrideLexer.WS:
            tokens.pop(end)
    return tokens
