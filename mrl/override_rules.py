"""What is wrong with the words of a command line, said before Hydra composes and PyTorch loads."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mrl.command_line import CommandLineError, as_typed


def read(words: Sequence[str], schema: type) -> list[str]:
    """``words`` of the command line as Hydra is to have them, see :func:`as_typed`.

    Raises:
        CommandLineError: for the first that cannot be read, or cannot be meant.
    """
    read = as_typed(words, schema)
    if text := fault(read, schema):
        raise CommandLineError(text)
    return read


def fault(words: Sequence[str], schema: type) -> str | None:
    """The first override that cannot be meant, and what to write; None if Hydra may judge them.

    Args:
        schema: :class:`mrl.config.TrainConfig` or :class:`mrl.config.EvalConfig`.
    """
    overrides = list(_overrides(words))
    known = {"experiment": str, **dict(_keys(schema))}
    for override in overrides:
        if (
            text := _unknown(override.key_or_group, known)
            or _no_boolean(override, known)
            or _null_choice(override)
        ):
            return text
    given = {override.key_or_group: override for override in overrides}
    if "optim.name" in given and "optim.base_lr" not in given:
        name = given["optim.name"].get_value_element_as_str()
        return (
            f"optim.name={name} alone would keep the rates of another optimiser: optim={name} "
            "brings its own (configs/optim), or give optim.base_lr, too"
        )
    return None


def _overrides(words: Sequence[str]) -> Iterator[Override]:
    """Those that set keys of ours, or choose one of their groups."""
    parser = OverridesParser.create()
    for word in words:
        if not word.partition("=")[0] or "=" not in word or word.startswith("-"):
            continue
        try:
            override = parser.parse_override(word)
        except HydraException:
            continue  # Hydra itself says where it stumbles
        if not override.is_hydra_override() and not {"/", "@"} & {*override.get_key_element()}:
            yield override


def _keys(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("optim.epochs", int) for every key and every section."""
    types = get_type_hints(schema)
    for name in (field.name for field in fields(schema)):
        yield prefix + name, types[name]
        for section in (types[name], *get_args(types[name])):
            if isinstance(section, type) and is_dataclass(section):
                yield from _keys(section, f"{prefix}{name}.")


def _unknown(key: str, known: dict[str, Any]) -> str | None:
    if key in known:
        return None
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts))]
    if whole := [k for k in above if k in known and not any(o.startswith(f"{k}.") for o in known)]:
        return f"{key} is part of a value: give {whole[0]} as a whole"
    likeness = {other: _likeness(key, other) for other in known}
    best = max(likeness.values())
    meant = [other for other in known if likeness[other] > best - 0.02]
    advice = f"did you mean {' or '.join(meant)}?" if best > 0.65 else "see mrl/config.py"
    return f"there is no key {key}: {advice}"


def _likeness(key: str, other: str) -> float:
    """From 0 to 1, of the last parts or of the whole names; of equals, a key of that section."""
    last, others_last = key.split(".")[-1], other.split(".")[-1]
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    part = difflib.SequenceMatcher(None, last, others_last).ratio()
    return 0.9 * max(whole, part, 0.8 * (last in others_last)) + 0.1 * whole


def _null_choice(override: Override) -> str | None:
    """Hydra fails on it in riddles where the list chooses files of a group."""
    value = None if override.is_sweep_override() else override.value()
    if isinstance(value, list) and None in value:
        return f"{override.key_or_group} has null in its list {override.value()}: leave it out"
    return None


def _no_boolean(override: Override, known: dict[str, Any]) -> str | None:
    """OmegaConf would take any number for true."""
    if known.get(override.key_or_group) is not bool:
        return None
    swept = override.is_sweep_override() and override.is_discrete_sweep()
    for value in override.sweep_iterator() if swept else [override.value()]:
        if isinstance(value, int | float) and value not in (0, 1):
            return f"{override.key_or_group} must be true or false, got {value}"
    return None
