"""Which part of a configuration decides whether a finished stage is still valid, and markers for the rest.

A key that is renamed or added must not make finished runs run again: the fingerprint keeps the names that keys
first had, and leaves out what was added since, at its default. tests/unit/experiment/config/test_fingerprint.py holds
fingerprints of runs that were finished before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class _NotFingerprinted:
    """Marker for :data:`NotFingerprinted`."""


NotFingerprinted = _NotFingerprinted()
"""``Annotated[int, NotFingerprinted]``: a field that cannot change what the stage produces (log interval,
number of workers), so a new value does not redo the stage."""


class _OmittedIfNull:
    """Marker for :data:`OmittedIfNull`."""


OmittedIfNull = _OmittedIfNull()
"""``Annotated[Options | None, OmittedIfNull]``: an option that was added to a stage later. Null is how the
stage worked before, so results made without the option stay valid."""


class _OmittedIfDefault:
    """Marker for :data:`OmittedIfDefault`."""


OmittedIfDefault = _OmittedIfDefault()
"""``Annotated[list[StepConfig], OmittedIfDefault] = []``: as :data:`OmittedIfNull` for lists, sections and
values whose default is how the stage worked before the field was added. Such a default must not change."""


@dataclass(frozen=True)
class FingerprintedAs:
    """``Annotated[Options, FingerprintedAs("old_name")]``: a field renamed since results were made with it.

    The fingerprint keeps the earlier name and the earlier values, so those results stay valid. In a configuration
    the earlier name is refused with the present one; that is all it does for a :data:`NotFingerprinted` field.

    Attributes:
        name: earlier name of the field; None where only values were renamed.
        values: earlier value by present value; of a list, of its items, of a mapping, of its values.
    """

    name: str | None = None
    values: Mapping[Any, Any] = field(default_factory=dict)

    def earlier(self, value: Any) -> Any:
        """The value as it was written before."""
        if isinstance(value, list):
            return [self.earlier(item) for item in value]
        if isinstance(value, dict):
            return {key: self.earlier(item) for key, item in value.items()}
        return self.values.get(value, value)


def fingerprint(section: BaseModel | None) -> str:
    """sha256 over the fields of a section that can change its output, under the names they first had."""
    return hashlib.sha256(
        json.dumps(_essential(section), sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def _essential(value: Any) -> Any:
    if isinstance(value, BaseModel):
        essential: dict[str, Any] = {}
        for name, info in type(value).model_fields.items():
            item = getattr(value, name)
            if not _is_left_out(item, info):
                renamed = next((mark for mark in info.metadata if isinstance(mark, FingerprintedAs)), None)
                earlier = _essential(item)
                essential[(renamed and renamed.name) or name] = (
                    renamed.earlier(earlier) if renamed else earlier
                )
        return essential
    if isinstance(value, Mapping):
        return {str(key): _essential(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_essential(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _is_left_out(value: Any, info: FieldInfo) -> bool:
    """Whether a field of this value is no part of the fingerprint."""
    markers = {type(item) for item in info.metadata}
    if _NotFingerprinted in markers or (_OmittedIfNull in markers and value is None):
        return True
    return _OmittedIfDefault in markers and _essential(value) == _essential(
        info.get_default(call_default_factory=True)
    )
