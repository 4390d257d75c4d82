"""Words of the command line to choices and values, and settings to YAML and back: everything about settings that is only text."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from omegaconf import OmegaConf

from svf_rl.errors import UserError

MANY = 20  # names that a message still lists one by one


def split_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """(key, text) of each key=value. UserError for a word that is none."""
    for word in words:
        if "=" not in word:
            raise UserError(f"expected key=value, found {word!r}; for example env=math")
    pairs = (word.partition("=") for word in words)
    return [(key, value) for key, _, value in pairs]


def refuse_unknown(kind: str, name: str, known: Sequence[str]) -> None:
    """UserError with the nearest known names unless `name` is one of them."""
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}{nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The known names that look like `name`; if there are none, all of them, without the keys of groups where there are many."""
    close = difflib.get_close_matches(name, known, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(known) <= MANY:
        return f"; expected one of {', '.join(known)}"
    return f"; expected one of {', '.join(name for name in known if '.' not in name)}; --help lists all"


def is_misspelt(name: str, known: Sequence[str]) -> bool:
    return bool(difflib.get_close_matches(name, known, cutoff=0.8))


def names_in_list(text: str) -> list[str] | None:
    """The names of "[math,code]", or None for text that is no list."""
    return [name.strip() for name in text[1:-1].split(",")] if text.startswith("[") and text.endswith("]") else None


def listed(text: str) -> list[str]:
    """The names of "[one,another]" or "one"."""
    return [name for name in names_in_list(text) or [text] if name]


def parsed(text: str) -> Any:
    """Free settings, whose type no schema knows: lists, mappings, numbers, true, false and null as in YAML; else the text."""
    if text[:1] not in "[{" and not re.fullmatch(r"true|false|null|-?\d+(\.\d*)?([eE]-?\d+)?", text):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is neither a list nor a mapping ({one_line(error)}); write [a, b] or {{a: b}}") from error


def like(default: Any, key: str, text: str) -> Any:
    """A free setting of the kind of its default: a text as it was typed, else `parsed`. UserError if that is no true or false."""
    value = text if isinstance(default, str) and default != "???" else parsed(text)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key}: expected true or false, found {text!r}")
    return value


def escaped(value: Any) -> Any:
    """The value with "${" in its texts escaped, which OmegaConf would read as a reference."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def to_yaml(config: Any) -> str:
    """The settings as YAML that OmegaConf reads back the same."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config))))


def flat_settings(text: str) -> dict[str, Any]:
    """The settings in YAML by dotted key. ValueError if the text holds none."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except Exception as error:  # the YAML reader has several types of its own
        raise ValueError(one_line(error)) from error
    return {key: value for key, value in flat(settings).items() if key}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    if not isinstance(node, Mapping) or (prefix and not node):
        return {prefix: node}
    return {key: value for name in node for key, value in flat(node[name], f"{prefix}.{name}".lstrip(".")).items()}


def one_line(error: Exception) -> str:
    """What an error of Hydra, OmegaConf or YAML comes to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{where}: {lines[0]}" if where else lines[0]
