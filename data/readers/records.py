"""Records with named fields (JSONL, Parquet) as documents, by the source's kind and reader options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tsugiki.data.common.charset import encodable
from tsugiki.data.common.shard import InputFile
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers.base import BadRecord, lookup, new_document
from tsugiki.data.readers.preference import Refused, preference_pair

if TYPE_CHECKING:
    from datatrove.data import Document


def document_of_record(
    source: SourceConfig,
    file: InputFile,
    record: Any,
    where: str,
    number: int,
    size: int,
    fields: Sequence[str] = (),
) -> Document | BadRecord:
    """A JSONL or Parquet record as a document, by the source's kind and reader options.

    Args:
        source: the source.
        file: where the record is.
        record: the record.
        where: its place, for people.
        number: its number in the file.
        size: its bytes.
        fields: what the file has, where the record holds only the fields that are used.
    """
    if not isinstance(record, dict):
        detail = f"a {type(record).__name__}, not an object"
        return BadRecord("read.wrong_type", where, detail, str(record), size)
    options = source.reader
    url = lookup(record, options.url_key)
    identifier = lookup(record, options.id_key)
    if isinstance(identifier, int):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        identifier = f"{file.name}#{number}"
    metadata = {"url": url if isinstance(url, str) else None, "file": file.name}
    identifier = f"{source.name}/{identifier}"
    if source.kind == "instruction":
        messages = lookup(record, options.messages_key)
        problem = _messages_problem(messages, options.messages_key)
        if problem is not None:
            return BadRecord("read.wrong_type", where, problem, str(record), size)
        kept = [{"role": item["role"], "content": encodable(item["content"])} for item in messages]
        return new_document(source, identifier, "", size, messages=kept, **metadata)
    if source.kind == "preference":
        pair = preference_pair(record, options)
        if isinstance(pair, Refused):
            return BadRecord(pair.rule, where, pair.detail, str(record), size)
        return new_document(
            source, identifier, "", size, messages=pair.messages, rejected=[pair.rejected], **metadata
        )
    if source.parallel is not None:
        keys = [source.parallel.source_key, source.parallel.target_key]
    else:
        keys = [options.text_key]
    texts: list[str] = []
    for key in keys:
        value = lookup(record, key)
        if value is None:
            available = ", ".join(list(fields or record)[:12])
            detail = f"no field '{key}'; the record has: {available}"
            return BadRecord("read.missing_field", where, detail, str(record), size)
        if not isinstance(value, str):
            detail = f"field '{key}' is a {type(value).__name__}, not a string"
            return BadRecord("read.wrong_type", where, detail, str(record), size)
        texts.append(value)
    if source.parallel is not None:
        return new_document(source, identifier, "", size, pair=texts, **metadata)
    return new_document(source, identifier, texts[0], size, **metadata)


def _messages_problem(messages: Any, key: str) -> str | None:
    """What is wrong with a conversation, None when nothing is."""
    if not isinstance(messages, list) or not messages:
        return f"field '{key}' is not a list of messages"
    for item in messages:
        if not isinstance(item, dict):
            return f"a message of '{key}' is a {type(item).__name__}, not an object"
        if item.get("role") not in ("system", "user", "assistant", "tool"):
            return f"a message of '{key}' has the role {item.get('role')!r}"
        if not isinstance(item.get("content"), str):
            return f"a message of '{key}' has no text under 'content'"
    if not any(item["role"] == "assistant" for item in messages):
        return f"'{key}' has no assistant message to learn from"
    if not any(item["role"] == "assistant" and item["content"].strip() for item in messages):
        return f"all assistant messages of '{key}' are empty"
    return None
