"""The base of all configuration sections: what is unknown or of another type is an error."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class StrictModel(BaseModel):
    """Base of all configuration: unknown keys are errors, values are checked and immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`yes`, `no`, `on`, `off` are booleans in YAML 1.1; pydantic would take them for 1 and 0."""
        if info.field_name is not None and _has_boolean(value):
            _refuse_boolean(value, cls.model_fields[info.field_name].annotation)
        return value


def _has_boolean(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(map(_has_boolean, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _is_literal_boolean(member: Any) -> bool:
    return typing.get_origin(member) is Literal and any(map(_has_boolean, typing.get_args(member)))


def _refuse_boolean(value: Any, annotation: Any) -> None:
    """Raise where a boolean stands for what is a number and nothing else that a boolean could be."""
    found = list(members(annotation))
    if isinstance(value, bool):
        takes_boolean = any(member in (bool, Any, object) or _is_literal_boolean(member) for member in found)
        if not takes_boolean and (int in found or float in found):
            raise ValueError("a number; yes, no, on, off, true and false are booleans")
        return
    for item in value.values() if isinstance(value, dict) else value:
        if _has_boolean(item):
            for member in found:
                # Sections look at their own fields.
                if typing.get_origin(member) in (list, dict, tuple, Mapping, Sequence):
                    inner = [part for part in typing.get_args(member) if part is not Ellipsis]
                    _refuse_boolean(item, inner[-1])


def members(annotation: Any) -> Iterator[Any]:
    """Classes in an annotation, unions, optionals and Annotated opened."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from members(typing.get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from members(argument)
    else:
        yield annotation


def dump_yaml(model: BaseModel) -> str:
    """A validated configuration as YAML that loads to the same values."""
    return yaml.safe_dump(
        model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
