"""Names resolve by module: ``model.name: mire`` is ``models/mire.py``. No registry and no ladder of ifs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Set
from types import ModuleType

from core.errors import UserError


class Room:
    """The modules of a package that a YAML may name.

    package: its import name. key: the YAML key that names one. what: the plural in messages. helpers: its modules
    that are not for naming.
    """

    def __init__(self, package: str, key: str, what: str, helpers: Set[str]) -> None:
        self.package, self.key, self.what, self.helpers = package, key, what, helpers

    def names(self) -> list[str]:
        """Every name that the YAML may give."""
        path = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in self.helpers)

    def module(self, name: str) -> ModuleType:
        """The module of that name; an unknown name is an error that lists the known ones."""
        if name not in self.names():
            raise UserError(f"{self.key} is '{name}'; known {self.what} are {', '.join(self.names())}.")
        return importlib.import_module(f"{self.package}.{name}")

    def config_class(self, section: dict) -> type:
        """The pydantic class of a YAML section that names a module of this room."""
        if "name" not in section:
            raise UserError(f"{self.key}: is missing; add one of {', '.join(self.names())}")
        return self.module(str(section["name"])).Config
