"""One layer of a config, a YAML file or a `key=value` word: read, and checked against the dataclass that it fills."""

from __future__ import annotations

import dataclasses
import functools
import keyword
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umbra.errors import UserError, naming, near_miss, nearest
from umbra.plain_yaml import MISSING, refuse_surprises
from umbra.reference import SCHEMAS
from umbra.usual_names import usual_name

TextOrTexts = typing.Annotated[Any, "a text, or a mapping of names to texts"]  # OmegaConf has no such type


def config_file(path: str | Path) -> Path:
    """`path` if it exists; otherwise, for `configs/...`, the copy that was installed with the package."""
    path, here = Path(path), Path(__file__).parent
    if not path.exists() and path.parts[:1] == ("configs",):
        for root in (here, here.parent):  # wheel, checkout
            if (root / path).parent.is_dir():
                return root / path
    return path


def layers(
    schema: type, path: str | Path | None, overrides: Sequence[str], source: str
) -> Iterator[tuple[str, str, dict[Any, Any]]]:
    """(where it comes from, its dotted key or an empty string for a file, nested values) of each layer."""
    choices = _choices(schema)
    if path is not None:
        yield str(path), "", _with_words(_opened(_read_yaml(path), schema), choices)
    for word in overrides:
        origin = f"'{word}' {source}"
        layer = _with_words(_opened(_read_word(word, schema, origin), schema), choices)
        yield origin, word.partition("=")[0], layer


def _opened(layer: dict[Any, Any], schema: Any) -> dict[Any, Any]:
    """The layer with `pair: halves` written out as `pair: {kind: halves}`, for a section that names a `short` key."""
    short = {name: getattr(kind, "short", None) for name, kind in field_types(schema)}
    return {
        name: {short[name]: value} if short.get(name) and not isinstance(value, dict) else value
        for name, value in layer.items()
    }


def refuse_option(word: str, options: Sequence[str] = ()) -> None:
    if word.startswith("-") and "=" not in word:
        known = near_miss(word, [*options, "--help"])
        raise UserError(f"unknown option {word}{known}{', and KEY=VALUE without dashes' * ('; known' in known)}")


def _read_word(word: str, schema: type, origin: str) -> dict[Any, Any]:
    key, sign, value = word.partition("=")
    refuse_option(word)
    if not sign or not key:
        hint = "" if sign else f"; did you mean {next(keys(schema))[0]}={word}?"
        raise UserError(f"{origin} is not of the form key=value{hint}")
    if _is_literal(key, value, dict(keys(schema))):
        quoted = re.fullmatch(r"(['\"])(.*)\1", value, re.DOTALL)
        nested: Any = quoted[2] if quoted else value
        if nested == MISSING:
            raise UserError(f"{origin}: {MISSING} is no value: give one, or leave the key out")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        return nested
    try:
        with naming(origin):
            refuse_surprises(value, key)
        return _plain_layer(OmegaConf.from_dotlist([word]))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{origin}: the value is not valid YAML") from error


def _is_literal(key: str, value: str, known: dict[str, Any]) -> bool:
    """Whether the value of a word is a text as it stands, and no YAML."""
    if known.get(key) == TextOrTexts:
        return not (value.startswith("{") and value.endswith("}"))
    return known.get(key) is str or known.get(key.rpartition(".")[0]) == TextOrTexts


def _read_yaml(typed: str | Path) -> dict[Any, Any]:
    path = config_file(typed)
    if not path.is_file():
        raise UserError(f"config file {typed} {'is a folder' if path.is_dir() else 'does not exist'}{_instead(path)}")
    try:
        with naming(str(path)):
            refuse_surprises(path.read_text(encoding="utf-8"))
        layer = OmegaConf.load(path)
        if isinstance(layer, DictConfig):
            return _plain_layer(layer)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    raise UserError(f"config file {path} must contain `key: value` lines, not a list or a single value")


def _instead(path: Path) -> str:
    """A hint at the config file that was probably meant: one of the product with this name, or one beside it."""
    here = path if path.is_dir() else path.parent
    shipped = config_file("configs/shard").parent
    if same := [f"configs/{p.parent.name}/{p.name}" for p in sorted(shipped.glob(f"*/{path.stem}.yaml"))]:
        return f"; did you mean {' or '.join(same)}?"
    names = sorted(p.name for p in here.glob("*.yaml")) if here.is_dir() else []
    return near_miss(path.name, names) if names else ""


def _with_words(layer: dict[Any, Any], choices: dict[str, Any]) -> dict[Any, Any]:
    """A layer in which truth values are the words `true` and `false` where these are choices of a key."""
    out = dict(layer)
    for name, value in layer.items():
        known, word = choices.get(name), str(value).lower()
        if isinstance(value, dict) and isinstance(known, dict):
            out[name] = _with_words(value, known)
        elif isinstance(known, tuple) and word in ("true", "false") and word in known:
            out[name] = word
    return out


def _choices(schema: Any) -> dict[str, Any]:
    """The choices of each field of a schema, nested as its sections are."""
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(schema)}
    return {
        name: _choices(kind) if dataclasses.is_dataclass(kind) else fields[name].metadata.get("choices", ())
        for name, kind in field_types(schema)
    }


def _plain_layer(layer: DictConfig) -> dict[Any, Any]:
    plain = OmegaConf.to_container(layer)
    assert isinstance(plain, dict)
    return plain


def check_layer(layer: dict[Any, Any], schema: Any, origin: str) -> None:
    """Raises `UserError` for the first key of a layer that is unknown or whose value cannot be of its type."""
    known = dict(keys(schema))
    with naming(origin):
        given = list(_given(layer, known))
    for key, value in given:
        kind = known.get(key)
        if kind is None:
            raise UserError(
                f"{origin}: unknown key '{key}'{_of_another_command(origin, schema) or _suggestion(key, known)}"
            )
        if dataclasses.is_dataclass(kind):
            inner = " or ".join(f"{k}=..." for k in known if k.startswith(f"{key}.") and "." not in k[len(key) + 1 :])
            raise UserError(f"{origin}: '{key}' is a section: give {inner}")
        if problem := _mismatch(key, value, kind):
            raise UserError(f"{origin}: {problem}")


def _of_another_command(origin: str, schema: Any) -> str:
    """A hint if the layer is a config file of the product for another command than that of `schema`."""
    folder = Path(origin).parent
    ours = [name for name, kind in SCHEMAS.items() if kind == f"{schema.__module__}:{schema.__name__}"]
    if not ours or folder.name in ours or folder.name not in SCHEMAS or folder.parent.name != "configs":
        return ""
    return f"; it is a config of another command: this one needs one of configs/{ours[0]}/"


def _given(layer: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a layer; sections are opened, and one with another value than keys is given as it is."""
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if "." in str(name) and key in known:
            nested = f"{str(name).replace('.', ': {')}: ...{'}' * str(name).count('.')}"
            raise UserError(f"key '{key}': nest it, {nested}")
        if dataclasses.is_dataclass(known.get(key)) and isinstance(value, dict):
            yield from _given(value, known, f"{key}.")
        else:
            yield key, value


def _mismatch(key: str, value: Any, kind: Any) -> str:
    """Why a value cannot be of the type of its key, as far as OmegaConf would not say it as clearly; else empty."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind == TextOrTexts:
        texts = {f"{key}.{name}": text for name, text in value.items()} if isinstance(value, dict) else {key: value}
        return next(filter(None, (_mismatch(where, text, str) for where, text in texts.items())), "")
    if outer is dict:
        if not isinstance(value, dict):
            return f"key '{key}': this is a mapping: write {key}={{A: B}}, or {{}} for none"
        return next(filter(None, (_mismatch(f"{key}.{name}", v, inner[1]) for name, v in value.items())), "")
    if outer is list:
        if not isinstance(value, list):
            return f"key '{key}': this is a list: write {key}=[A,B], or [] for none"
        return next(filter(None, (_mismatch(key, item, inner[0]) for item in value)), "")
    if kind not in (str, int, float, bool):
        return ""
    if value is None:
        return f"key '{key}' has no value: give one, or leave the key out"
    if isinstance(value, dict | list):
        return f"key '{key}': one value is needed, not {value}"
    if kind is str and isinstance(value, bool):
        return f"key '{key}': YAML reads yes, no, on, off, true and false as truth values: write text in quotes"
    if kind is not str and isinstance(value, str) and "${" in value:
        return f"key '{key}': {value} is not replaced by a value: write the {kind.__name__} itself"
    if kind in WANTED and not converts(value, kind):
        return f"key '{key}': {WANTED[kind]} is needed, not {value}"
    return ""


WANTED = {int: "a whole number", float: "a number", bool: "true or false"}
_TRUTH = ("true", "false", "yes", "no", "on", "off", "y", "n")


def converts(value: Any, kind: type) -> bool:
    """Whether OmegaConf takes a value for a key of the type `kind`."""
    if kind is bool:
        return str(value).lower() in _TRUTH or converts(value, int)
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return False
    try:
        kind(value)
    except (ValueError, OverflowError):
        return False
    return True


def mappings(schema: Any, at: str, layer: dict[Any, Any]) -> list[str]:
    """The keys of mappings that a layer at the dotted key `at` gives as a whole, as OmegaConf needs them."""
    given = dict(items(layer))
    whole = [
        k
        for k, kind in keys(schema)
        if k in given and (typing.get_origin(kind) is dict or (kind == TextOrTexts and isinstance(given[k], dict)))
    ]
    return [".".join(map(_as_field, key.split("."))) for key in whole if not at or f"{key}.".startswith(f"{at}.")]


def refuse_drop(schema: Any, file: DictConfig, config: DictConfig, at: str, layer: dict[Any, Any], origin: str) -> None:
    """Raises `UserError` where the word at the dotted key `at` would drop, without saying so, what `config` has of its
    key: a text without a name for one with a name, or texts with names, other than the `file`'s, for one without."""
    given = dict(items(layer))
    for key in (key for key, kind in keys(schema) if kind == TextOrTexts and key in given):
        before, now = OmegaConf.select(config, key), given[key]
        named = isinstance(before, str) and isinstance(now, dict) and at != key
        plain = isinstance(now, str) and isinstance(before, DictConfig) and before != OmegaConf.select(file, key)
        if before and now and (named or plain):
            raise UserError(f"{origin}: it would replace the other {key}: give each a name, {key}.A=... {key}.B=...")


def _suggestion(key: str, known: dict[str, Any]) -> str:
    """A hint at the key that was probably meant: by what others call it, by its last part in its section, by likeness,
    by its last part."""
    key = key.lstrip("-").replace("-", "_") if key.startswith("-") else key
    if hint := usual_name(key, known):
        return hint
    candidates = [k for k, kind in known.items() if "." not in key or not dataclasses.is_dataclass(kind)]
    top, (section, _, leaf) = key.partition(".")[0], key.rpartition(".")
    same = [k for k in candidates if k.rpartition(".")[2] == leaf]
    inside = [k for k in same if "." in key and k.startswith(f"{top}.")]
    beside = nearest(leaf, [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section])
    if f"{section}.args" in known and not inside and not beside:
        inside = [f"{section}.args.{leaf}"]
    near = next(iter(inside), "") or nearest(key, candidates) or next(iter(same), "")
    top_keys = sorted(k for k in known if "." not in k)
    return f"; did you mean '{near}'?" if near else f"; known keys: {', '.join(top_keys)}"


def keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema and its type."""
    for name, kind in field_types(schema):
        yield prefix + name, kind
        if dataclasses.is_dataclass(kind):
            yield from keys(kind, prefix + name + ".")


@functools.cache
def field_types(schema: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return [(f.name.rstrip("_"), hints[f.name]) for f in dataclasses.fields(schema)]


def as_fields(node: Any) -> Any:
    """`node` as OmegaConf needs it: Python keywords (`global`) get a trailing underscore, `${` is escaped."""
    if isinstance(node, dict):
        return {_as_field(k): as_fields(v) for k, v in node.items()}
    if isinstance(node, list):
        return [as_fields(v) for v in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def _as_field(name: Any) -> Any:
    return f"{name}_" if keyword.iskeyword(str(name)) and str(name).islower() else name


def items(layer: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in layer.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from items(value, f"{prefix}{name}.")
