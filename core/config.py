"""Configuration: one YAML is one run. OmegaConf loads and merges, pydantic validates every section at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from core.errors import UserError


class Strict(BaseModel):
    """Base of every config section: unknown keys and wrong types are errors, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)


Schema = Mapping[str, type[BaseModel] | Callable[[dict], type[BaseModel]]]
"""section name -> pydantic class, or a function from the raw section to its class (``model.name`` decides)."""


def load_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Read a YAML, merge ``key=value`` overrides, resolve ``${...}``; returns plain containers."""
    if not Path(path).is_file():
        raise UserError(f"config file '{path}' does not exist; give a YAML such as cfgs/flagfacts_mire.yaml.")
    for item in overrides:
        if "=" not in item or item.startswith("-"):
            raise UserError(f"'{item}' is not understood; overrides are written section.key=value.")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"config file '{path}' holds no mapping; write 'section: {{key: value}}' lines.")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"config file '{path}' cannot be read: {' '.join(str(error).split())}; correct it.") from None
    return raw


def override(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict:
    """Plain containers with ``key=value`` changes merged in."""
    try:
        merged = OmegaConf.merge(OmegaConf.create(dict(raw)), OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(
            f"{' '.join(overrides)} cannot be merged: {' '.join(str(error).split())}; correct it."
        ) from None


def validate(raw: Mapping[str, Any], schema: Schema) -> dict[str, BaseModel]:
    """Validate every section of ``raw``; all errors of all sections come in one UserError."""
    problems = [_unknown(key, list(schema), "") for key in raw if key not in schema]
    sections: dict[str, BaseModel] = {}
    for name, kind in schema.items():
        section = {} if raw.get(name) is None else raw[name]
        if not isinstance(section, Mapping):
            problems.append(f"{name}: got {section!r}, wants a mapping of keys")
            continue
        try:
            cls = kind if isinstance(kind, type) else kind(dict(section))
            sections[name] = cls.model_validate(dict(section))
        except ValidationError as error:
            problems += [_sentence(name, cls, e) for e in error.errors()]
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("the configuration has errors:\n  " + "\n  ".join(problems))
    return sections


def check(cls: type[BaseModel], raw: Mapping[str, Any], where: str) -> BaseModel:
    """Validate one section outside of a run (a checkpoint's config, a function's options)."""
    return validate({where: raw}, {where: cls})[where]


def _sentence(section: str, cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    path = ".".join([section, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return _unknown(str(error["loc"][-1]), _keys(cls, error["loc"][:-1]), path[: path.rfind(".") + 1])
    if error["type"] == "missing":
        return f"{path}: is missing; add it"
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # a validator that says it all, path included
        return str(cause)
    return f"{path}: got {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(cls: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    for part in loc:
        field = getattr(cls, "model_fields", {}).get(str(part))
        kind = field.annotation if field else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        cls = kind
    return list(cls.model_fields)


def _unknown(key: str, known: list[str], prefix: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{prefix}{close[0]}'?" if close else f"known keys: {', '.join(known) or 'none'}"
    return f"{prefix}{key}: unknown key; {hint}"
