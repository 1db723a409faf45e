"""The published JSON schema of CycloneDX 1.5 (Apache-2.0; CycloneDX/specification, minified), for offline checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

FOLDER = Path(__file__).with_name("cyclonedx")


def check_cyclonedx(document: dict[str, Any]) -> None:
    """Validate a document, and that what it refers to is in it."""
    schemas = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.schema.json")]
    registry: Any = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas
    )
    main = next(schema for schema in schemas if "bom-1.5" in schema["$id"])
    jsonschema.Draft7Validator(main, registry=registry).validate(document)
    known = {item["bom-ref"] for item in (document["metadata"]["component"], *document["components"])}
    assert len(known) == 1 + len(document["components"])
    named = {ref for item in document["dependencies"] for ref in (item["ref"], *item["dependsOn"])}
    model = document["metadata"]["component"]["modelCard"]["modelParameters"]
    assert named | {item["ref"] for item in model["datasets"]} <= known
