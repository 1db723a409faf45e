"""What went into a model, as a CycloneDX 1.5 bill of materials and a page.

Everything is read from the run's manifests, reports and ``config.yaml``; nothing is asked of the machine, so that the
same run gives the same bytes. CycloneDX rather than SPDX: it has models with model cards, data sets and packages in one
document (https://cyclonedx.org/docs/1.5/json/).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import atomic_file, read_json, sha256_file, write_json_atomically
from tsugiki.experiment.pages.page import Page, Section, render
from tsugiki.experiment.pages.tables import Cell, Column, Language, Number, Styled, Table
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.results import CorpusReport, Run, open_run

BOM_NAME = "provenance.cdx.json"
_TEMPLATE = Path(__file__).with_name("provenance.html.jinja")
_DIGEST = "tsugiki:stage:{}:digest"


def provenance(run_dir: Path | str) -> dict[str, Any]:
    """The bill of materials of a run.

    Raises:
        ConfigError: there is no run here.
        DataError: nothing is finished, or a report cannot be read.
    """
    run = open_run(run_dir)
    manifests = run.manifests
    if "corpus" not in manifests and "export" not in manifests:
        raise DataError(
            "the run has nothing whose origin could be told",
            where=run.directory,
            got=f"finished stages: {', '.join(manifests) or 'none'}",
            expected="a finished corpus or export",
        )
    config = run.config
    sources = _sources(run, config, manifests)
    model = _model(run, config, manifests, [item["bom-ref"] for item in sources])
    components = [*_base(config, manifests), *sources, *_packages(manifests), *_files(manifests)]
    newest = max(manifests.values(), key=lambda manifest: manifest.started)
    # Of the contents, so that it is the same for the same run.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, "tsugiki:" + " ".join(_digests(manifests).values()))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": newest.started,
            "tools": {"components": [_tool(newest)]},
            "component": model,
        },
        "components": components,
        "dependencies": [
            {"ref": "model", "dependsOn": [item["bom-ref"] for item in components if item["type"] != "file"]}
        ],
    }


def write_provenance(run_dir: Path | str, output_dir: Path | None = None) -> Path:
    """Write ``provenance.cdx.json``, ``index.html`` and the run's ``config.yaml``; returns their folder.

    Args:
        run_dir: the run.
        output_dir: None takes ``RUN/provenance``.

    Raises:
        TsugikiError: see :func:`provenance`.
    """
    run = open_run(run_dir)
    bom = provenance(run.directory)
    folder = output_dir or run.directory / "provenance"
    write_json_atomically(folder / BOM_NAME, bom)
    with atomic_file(folder / "config.yaml") as file:
        file.write(run.config_file.read_bytes())
    with atomic_file(folder / "index.html") as file:
        file.write(render(_page(bom), _TEMPLATE))
    return folder


def differences(run_dir: Path | str, bom_path: Path) -> list[str]:
    """Stages of a run whose results are not those that a bill of materials recorded; what did not run is left out.

    Raises:
        DataError: not a bill of materials of ours.
    """
    try:
        recorded = properties(read_json(bom_path)["metadata"]["component"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            "not a bill of materials of Tsugiki", where=bom_path, got=error, expected=BOM_NAME
        ) from error
    found = _digests(open_run(run_dir).manifests)
    return [
        name
        for name, digest in found.items()
        if recorded.get(_DIGEST.format(name), digest) != digest and name != "report"
    ]


def properties(component: Mapping[str, Any]) -> dict[str, str]:
    """The properties of a component by name."""
    return {item["name"]: item["value"] for item in component.get("properties", [])}


def _written(values: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items() if value is not None]


def _digests(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    return {name: manifest.digest for name, manifest in manifests.items()}


def _licences(name: str | None) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": name}}]} if name else {}


def _tool(manifest: Manifest) -> dict[str, Any]:
    tool: dict[str, Any] = {"type": "application", "name": "tsugiki"}
    if version := manifest.versions.get("tsugiki"):
        tool["version"] = version
    if manifest.git_revision:
        tool["properties"] = _written({"tsugiki:commit": manifest.git_revision})
    return tool


def _model(
    run: Run, config: Mapping[str, Any], manifests: Mapping[str, Manifest], data: list[str]
) -> dict[str, Any]:
    export = manifests.get("export")
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": str(config.get("name", run.directory.name)),
        **_licences((config.get("export") or {}).get("license")),
    }
    parameters: dict[str, Any] = {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "datasets": [{"ref": ref} for ref in data],
    }
    path = run.directory / "export" / "config.json"
    if export is not None and path.is_file():
        parameters["architectureFamily"] = str(read_json(path).get("model_type"))
    component["modelCard"] = {"modelParameters": parameters}
    if metrics := _metrics(run, manifests):
        component["modelCard"]["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    facts: dict[str, object] = {
        "tsugiki:seed": config.get("seed"),
        "tsugiki:config:sha256": sha256_file(run.config_file),
    }
    for name, manifest in manifests.items():
        facts[_DIGEST.format(name)] = manifest.digest
        facts[f"tsugiki:stage:{name}:key"] = manifest.key
        facts[f"tsugiki:stage:{name}:commit"] = manifest.git_revision
    component["properties"] = _written(facts)
    return component


def _metrics(run: Run, manifests: Mapping[str, Manifest]) -> list[dict[str, str]]:
    if "evaluate" not in manifests:
        return []
    measured = run.evaluation.values["result"]["bits_per_byte"]
    return [
        {"type": "bits per byte of held-out text", "slice": language, "value": f"{value:.4f}"}
        for language, value in measured.items()
    ]


def _base(config: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """The base model, by its path or as one that the run trained itself."""
    user = next((manifests[name] for name in ("graft", "tokenizer") if name in manifests), None)
    digest = None if user is None else user.inputs.get("base")
    settings = config.get("base") or {}
    name = (config.get("export") or {}).get("base_model") or settings.get("path") or "trained in this run"
    base: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "base", "name": Path(str(name)).name}
    if "/" in str(name) and not str(name).startswith(("/", ".")):
        base["name"] = str(name)
    if digest:
        base["properties"] = _written({"tsugiki:digest": digest})
    return [base]


def _sources(run: Run, config: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    if "corpus" not in manifests:
        return []
    directory = run.directory / "corpus"
    settings = {item["name"]: item for item in (config.get("corpus") or {}).get("sources", [])}
    report = CorpusReport.load(directory)
    shares = {item.name: item for item in run.mixture.sources} if "tokens" in manifests else {}
    outputs = manifests["corpus"].outputs
    components = []
    for source in CorpusIndex.load(directory).sources:
        given, told = settings.get(source.name, {}), report.sources.get(source.name)
        facts: dict[str, object] = {
            "tsugiki:language": source.language,
            "tsugiki:kind": source.kind,
            "tsugiki:path": _public(given.get("path")),
            "tsugiki:profile": (given.get("profile") or source.language)
            if given.get("filter", True)
            else "none",
            "tsugiki:documents:read": None if told is None else told.read.documents,
            "tsugiki:documents:kept": None if told is None else told.kept.documents,
            "tsugiki:documents:train": source.train_documents,
            "tsugiki:documents:heldout": source.heldout_documents,
        }
        if told is not None:
            facts |= {f"tsugiki:dropped:{rule}": amount.documents for rule, amount in told.dropped.items()}
        if (mixed := shares.get(source.name)) is not None:
            facts |= {"tsugiki:tokens:share": f"{mixed.share:.6f}", "tsugiki:epochs": f"{mixed.epochs:.4f}"}
        for shard in [*source.train, *source.heldout]:
            facts[f"tsugiki:sha256:{shard}"] = outputs[shard].sha256 if shard in outputs else None
        contents = {"properties": _written({"tsugiki:language": source.language})}
        components.append(
            {
                "type": "data",
                "bom-ref": f"data/{source.name}",
                "name": source.name,
                **_licences(given.get("license")),
                "data": [{"type": "dataset", "name": source.name, "contents": contents}],
                "properties": _written(facts),
            }
        )
    return components


def _public(path: str | list[str] | None) -> str | None:
    """Where a source was read from; of a place on this machine only the name, since the bill may be published."""
    if path is None:
        return None
    given = [path] if isinstance(path, str) else path
    return ", ".join(Path(item).name if item.startswith(("/", "~", ".")) else item for item in given)


def _packages(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Versions that the stages ran with; a package that changed meanwhile is named twice."""
    used = {item for manifest in manifests.values() for item in manifest.versions.items()}
    return [
        {
            "type": "library" if name != "python" else "platform",
            "bom-ref": f"package/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:{'generic' if name == 'python' else 'pypi'}/{name}@{version.replace('+', '%2B')}",
        }
        for name, version in sorted(used)
    ]


def _files(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Files of the exported model."""
    if "export" not in manifests:
        return []
    return [
        {
            "type": "file",
            "bom-ref": f"file/{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        }
        for name, file in manifests["export"].outputs.items()
    ]


def _page(bom: Mapping[str, Any]) -> Page:
    model = bom["metadata"]["component"]
    facts = properties(model)
    sections = [
        Section("table", "Sources", _source_table(bom["components"]), anchor="sources"),
        Section("table", "Stages", _stage_table(facts), anchor="stages"),
        Section("table", "Files of the model", _hash_table(bom["components"], "file"), anchor="files"),
        Section("table", "Software", _version_table(bom["components"]), anchor="software"),
    ]
    base = next(item for item in bom["components"] if item["bom-ref"] == "base")
    subtitle = f"What went into {model['name']}: base {base['name']}, seed {facts.get('tsugiki:seed')}"
    return Page(f"Provenance of {model['name']}", subtitle, sections)


def _source_table(components: Iterable[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for item in components:
        if item["type"] != "data":
            continue
        facts = properties(item)
        counts: list[Cell] = [
            int(facts[name]) if (name := f"tsugiki:documents:{key}") in facts else None
            for key in ("read", "kept", "train", "heldout")
        ]
        licence = item["licenses"][0]["license"]["name"] if "licenses" in item else "not stated"
        share = facts.get("tsugiki:tokens:share")
        rows.append(
            [
                item["name"], Language(facts["tsugiki:language"]), licence, *counts,
                None if share is None else Number(float(share), ".1%"), facts["tsugiki:profile"],
                Styled(facts.get("tsugiki:path", ""), "code"),
            ]
        )  # fmt: skip
    words = {"Source", "Language", "Licence", "Profile", "Read from"}
    titles = ("Source", "Language", "Licence", "Read", "Kept", "Training", "Held out", "Share of tokens")
    columns = [Column(title, numeric=title not in words) for title in (*titles, "Profile", "Read from")]
    return Table("sources", columns, rows)


def _stage_table(facts: Mapping[str, str]) -> Table:
    names = [
        name.split(":")[2] for name in facts if name.startswith("tsugiki:stage:") and name.endswith(":digest")
    ]
    rows: list[list[Cell]] = [
        [
            name,
            *(Styled(facts.get(f"tsugiki:stage:{name}:{key}", ""), "code") for key in ("digest", "commit")),
        ]
        for name in names
    ]
    return Table(
        "stages",
        [Column(title, numeric=False) for title in ("Stage", "sha256 of its results", "Commit")],
        rows,
    )


def _hash_table(components: Iterable[Mapping[str, Any]], kind: str) -> Table:
    rows: list[list[Cell]] = [
        [item["name"], Styled(item["hashes"][0]["content"], "code")]
        for item in components
        if item["type"] == kind
    ]
    return Table("files", [Column(title, numeric=False) for title in ("File", "sha256")], rows)


def _version_table(components: Iterable[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [item["name"], item["version"]] for item in components if item["type"] in ("library", "platform")
    ]
    return Table("software", [Column(title, numeric=False) for title in ("Package", "Version")], rows)
