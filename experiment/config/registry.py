"""Open doors: a name in the configuration -> the thing of that name, found by where its file lies.

A registry imports every module of its packages once, at the first question, and each module registers what it adds.
So a new FILE adds a new thing, and no list is edited anywhere::

    FILTERS: Registry[FilterMaker] = Registry("filter", ["tsugiki.data.filters"])

    # data/filters/shouting.py
    @FILTERS.register("shouting", title="Mostly capital letters")
    def make(settings: Shouting) -> BaseFilter: ...

Modules that register import heavy libraries inside functions, because the names are asked for by the command line.
What is not ours is loaded by address, ``package.module:Name``: see :func:`load_object`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from tsugiki.experiment.errors import ConfigError

Thing = TypeVar("Thing")
AnyThing = TypeVar("AnyThing")

_ADDRESS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_ADDRESS_FORM = "package.module:Name"


@dataclass(frozen=True)
class Entry(Generic[Thing]):
    """One registered thing."""

    name: str
    thing: Thing
    module: str
    """Module that registered it."""
    facts: Mapping[str, Any]
    """What was said about it when it was registered: titles, limits, …"""


class Registry(Generic[Thing]):
    """Things of one kind by name."""

    def __init__(self, kind: str, packages: Sequence[str]) -> None:
        """Nothing is imported yet.

        Args:
            kind: what an entry is called in messages, e.g. ``model family``.
            packages: dotted names of the package folders whose modules register entries; those of sub-folders too.
        """
        self.kind = kind
        self._packages = tuple(packages)
        self._entries: dict[str, Entry[Thing]] = {}
        self._discovered = False
        self._lock = threading.RLock()  # the modules register from within the discovery

    def register(self, name: str, **facts: Any) -> Callable[[AnyThing], AnyThing]:
        """Decorator that adds a class, a function or, called by hand, any object.

        Args:
            name: what the configuration says.
            facts: anything about the entry that must be known without making one.

        Raises:
            ConfigError: another entry has this name.
        """

        module = str(sys._getframe(1).f_globals.get("__name__", "?"))

        def add(thing: Any) -> Any:
            with self._lock:
                earlier = self._entries.get(name)
                if earlier is not None:
                    raise ConfigError(
                        f"two entries for one {self.kind}", where=module, got=name,
                        expected=f"a name of its own: {earlier.module} registers {name} already",
                    )  # fmt: skip
                self._entries[name] = Entry(name, thing, module, MappingProxyType(dict(facts)))
            return thing

        return add

    def get(self, name: str, where: object = None) -> Thing:
        """The thing of this name.

        Args:
            name: what the configuration says.
            where: place of the name in the configuration, for the message.

        Raises:
            ConfigError: no such entry.
        """
        return self.entry(name, where).thing

    def entry(self, name: str, where: object = None) -> Entry[Thing]:
        """The thing with its facts and the module it comes from.

        Raises:
            ConfigError: no such entry.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name]
        raise unknown_name(self.kind, name, self.names(), where)

    def facts(self, name: str, where: object = None) -> Mapping[str, Any]:
        """What was said about an entry when it was registered.

        Raises:
            ConfigError: no such entry.
        """
        return self.entry(name, where).facts

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def load_object(self, address: str, where: object = None) -> Any:
        """A user's own thing: see :func:`load_object`."""
        return load_object(address, where, kind=self.kind)

    def _discover(self) -> None:
        if self._discovered:
            return
        with self._lock:
            if self._discovered:
                return
            try:
                for package in self._packages:
                    _import_all(package)
            except BaseException:
                # The next question tries, and fails, again: never half a registry. Python has forgotten the module
                # that failed, so what it registered before is forgotten too.
                for name, entry in list(self._entries.items()):
                    if entry.module not in sys.modules:
                        del self._entries[name]
                raise
            self._discovered = True


def unknown_name(kind: str, name: str, known: Sequence[str], where: object = None) -> ConfigError:
    """The error for a name that nothing has: all known ones, and the nearest."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return ConfigError(
        f"no such {kind}", where=where, got=name,
        expected=f"one of {', '.join(known)}" if known else f"a {kind}; none is registered",
        fix=f"did you mean '{near[0]}'?" if near else None,
    )  # fmt: skip


def load_object(address: str, where: object = None, *, kind: str = "object") -> Any:
    """What ``package.module:Name`` names; the name may have dots (a class inside a class).

    Args:
        address: module and name. The module is looked for where Python looks: site-packages and PYTHONPATH, and the
            working directory only if Python itself was started to look there.
        where: place of the address in the configuration, for the message.
        kind: what is expected there.

    Raises:
        ConfigError: malformed, the module cannot be imported (with the cause), or has no such name.
    """
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"malformed address of a {kind}", where=where, got=address, expected=_ADDRESS_FORM)
    module_name, _, path = address.partition(":")
    try:
        current: Any = importlib.import_module(module_name)
    # Any error may come out of a module that is not ours while it is imported.
    except Exception as error:
        raise ConfigError(
            f"the module of a {kind} cannot be imported", where=where, got=address,
            expected=f"a module that Python finds: {type(error).__name__}: {error}",
            fix=f"install the package of {module_name}, or put its folder on PYTHONPATH"
            if isinstance(error, ModuleNotFoundError) else None,
        ) from error  # fmt: skip
    for part in path.split("."):
        names = [name for name in dir(current) if not name.startswith("_")]
        try:
            current = getattr(current, part)
        except AttributeError as error:
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
            raise ConfigError(
                f"the module of a {kind} has no such name", where=where, got=address,
                expected=f"one of {', '.join(names)}" if names else f"{module_name} defines nothing",
                fix=f"did you mean '{near[0]}'?" if near else None,
            ) from error  # fmt: skip
    return current


def _import_all(package_name: str) -> None:
    package = importlib.import_module(package_name)
    # walk_packages would swallow an import error of a sub-package, and with it all entries below.
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        name = f"{package_name}.{module.name}"
        if module.ispkg:
            _import_all(name)
        else:
            importlib.import_module(name)
