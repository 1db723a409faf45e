"""Configuration of the corpus and tokens stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializeAsAny, ValidationInfo, create_model, field_validator, model_validator

from tsugiki.data.common.charset import python_codec
from tsugiki.data.readers import READERS, reader_class
from tsugiki.experiment.config.fingerprint import FingerprintedAs, NotFingerprinted, OmittedIfDefault
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.text.chat_tokens import ChatConfig

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]+)?$")]
"""ISO 639 code (``ja``, ``zh``, ``fil``), optionally with a script or region (``zh-Hant``)."""

SourceKind = Literal["text", "parallel", "instruction", "preference"]
CONVERSATIONS: frozenset[SourceKind] = frozenset({"instruction", "preference"})
"""Kinds whose documents are messages: they are not filtered."""
OnError = Literal["skip", "fail"]
_OUR_NAMES = frozenset(
    {
        *(
            "index.json",
            "manifest.json",
            "report.json",
            "report.html",
            "contamination.jsonl",
        ),  # in the corpus
        *("mixture.json", "chat_template.jinja", "plan.json", "logs"),  # in tokens and its work folder
    }
)
_HELDOUT = ".heldout"
_MAXIMUM_NAME = 200
"""Characters; file systems take 255 with our endings."""
StepPoint = Literal["read", "urls", "extraction", "language", "quality"]
PiiKind = Literal["email", "ip", "phone", "national_id"]


class ReaderConfig(StrictModel):
    """How the records of a source are read; unused options of other formats are ignored."""

    text_key: str = "text"
    """JSONL, Parquet: field that holds the text; a dotted path goes into nested objects."""
    id_key: str = "id"
    """JSONL, Parquet: field that holds the identifier; records without it are numbered."""
    url_key: str = "url"
    """JSONL, Parquet: field that holds the address."""
    messages_key: str = "messages"
    """Instruction sources: field that holds the list of ``{"role", "content"}``."""
    prompt_key: Annotated[str, OmittedIfDefault] = "prompt"
    """Preference sources: field of the prompt, a text or a list of messages; absent where both answers hold it."""
    chosen_key: Annotated[str, OmittedIfDefault] = "chosen"
    """Preference sources: field of the better answer, a text or a list of messages."""
    rejected_key: Annotated[str, OmittedIfDefault] = "rejected"
    """Preference sources: field of the worse answer."""
    documents: Literal["file", "line", "paragraph"] = "file"
    """Plain text: one document per file, per line, or per block between blank lines."""
    encoding: str | None = None
    """HTML, WARC, plain text: character encoding; null detects it per document."""
    maximum_document_bytes: int = Field(default=20_000_000, gt=0)
    """Longer records are counted as bad input (``oversized``) and never held in memory twice."""

    @field_validator("encoding")
    @classmethod
    def _encoding_is_a_character_set(cls, encoding: str | None) -> str | None:
        if encoding is not None and python_codec(encoding) is None:
            raise ValueError("a character set such as utf-8, shift_jis or windows-1252, or null")
        return encoding


class ExtractionConfig(StrictModel):
    """Main-content extraction of HTML and WARC sources (trafilatura)."""

    precision: bool = True
    """Prefer less text but correct; false keeps short pages and lists (favour recall)."""
    fallback: bool = False
    """Compare with readability and jusText: about 3x slower, better on unusual pages."""
    tables: bool = False
    """Keep the text of tables."""
    remove: list[str] = Field(default_factory=list)
    """XPath expressions of parts to remove before extraction (menus of a known site)."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """A page that takes longer is dropped (``extraction.timeout``); long enough that a busy machine
    does not drop pages another one keeps."""

    @field_validator("remove")
    @classmethod
    def _xpaths_select_elements(cls, expressions: list[str]) -> list[str]:
        from lxml import etree  # type: ignore[import-untyped]

        page = etree.HTML("<html><body><p>x</p></body></html>")
        for expression in expressions:
            try:
                selects = isinstance(page.xpath(expression), list)
            except etree.XPathError as error:
                raise ValueError(f"XPath expressions; '{expression}': {error}") from error
            if not selects:
                raise ValueError(f"XPath expressions that select elements, not '{expression}'")
        return expressions


class ParallelConfig(StrictModel):
    """Rendering of translation pairs into training text, in both directions."""

    source_key: str = "source"
    """Field of the text in the source's `language`."""
    target_key: str = "target"
    """Field of the text in `target_language`."""
    target_language: Language
    """Language of the other side."""
    template: str = "{source}\n{target}"
    """Rendering; `{source}`, `{target}`, `{source_language}`, `{target_language}` are filled in."""
    both_directions: bool = True
    """Render each pair a second time with the sides exchanged."""

    @model_validator(mode="after")
    def _template_has_both_sides(self) -> Self:
        if "{source}" not in self.template or "{target}" not in self.template:
            raise ValueError("a template that contains {source} and {target}")
        return self


class SourceConfig(StrictModel):
    """One source of text."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source: the name of its folder and the beginning of its files' names, none of which may meet."""
    language: Language
    """Language the documents should be in."""
    format: str
    """How the files are read, by a reader in `data/readers/`; `.gz .zst .bz2 .xz` are unpacked by their ending."""
    path: str | list[str]
    """File, folder, glob (`**` allowed), fsspec URL, or `debian:<package>/<glob inside the package>`."""
    kind: SourceKind = "text"
    """`parallel`: translation pairs; `instruction`: conversations under `reader.messages_key`; `preference`: pairs of
    answers under `reader.chosen_key` and `reader.rejected_key`."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the token mixture, used when `tokens.mixture.weights` is absent."""
    license: Annotated[str | None, NotFingerprinted] = Field(default=None, min_length=1)
    """Licence of the text as its publisher names it (`CC-BY-SA-4.0`), for the model card and the provenance."""
    profile: str | None = None
    """Quality profile; null takes the one named like the language."""
    filter: bool = True
    """False keeps every document as it is: no language identification, no quality profile."""
    maximum_documents: int | None = Field(default=None, gt=0)
    """Read at most this many documents, chosen by a hash of their names, not by position."""
    reader: SerializeAsAny[ReaderConfig] = ReaderConfig()
    """Reader options: those that all formats share, and those of this one."""
    extraction: ExtractionConfig = ExtractionConfig()
    """Extraction options (HTML, WARC)."""
    parallel: ParallelConfig | None = None
    """Rendering, required for `kind: parallel`."""

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        known = f"one of {', '.join(READERS.names())}, or package.module:Class of a reader of your own"
        try:
            reader = reader_class(name)
        except ConfigError as error:
            detail = f"; {error.fix}" if error.fix else ""
            raise ValueError(f"{error.expected}{detail}" if ":" in name else f"{known}{detail}") from error
        if not hasattr(reader, "options"):
            raise ValueError(f"{known}; this is a {type(reader).__name__}, not a subclass of Reader")
        return name

    @field_validator("reader", mode="before")
    @classmethod
    def _options_are_of_the_format(cls, value: Any, info: ValidationInfo) -> Any:
        if (name := info.data.get("format")) is None:  # a format that is wrong already
            return value
        options: type[ReaderConfig] = reader_class(name).options
        if type(value) is options:
            return value
        return options.model_validate(value.model_dump() if isinstance(value, ReaderConfig) else value)

    @field_validator("name")
    @classmethod
    def _name_is_not_ours(cls, name: str) -> str:
        if name.casefold() in _OUR_NAMES or name.casefold().endswith(".partial"):
            raise ValueError(
                "a name that no file of ours has: that one is written beside the sources' folders"
            )
        if len(name) > _MAXIMUM_NAME:
            raise ValueError(
                f"a name of at most {_MAXIMUM_NAME} characters, as it becomes part of file names"
            )
        return name

    @property
    def paths(self) -> list[str]:
        """The path or paths, as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if not self.paths or not all(self.paths):
            raise ValueError("at least one non-empty path")
        if (self.kind == "parallel") != (self.parallel is not None):
            raise ValueError("a `parallel:` section exactly when `kind: parallel`")
        if self.kind not in reader_class(self.format).kinds:
            fitting = [name for name in READERS.names() if self.kind in READERS.get(name).kinds]
            raise ValueError(f"`format: {'` or `'.join(fitting)}` for `kind: {self.kind}`")
        return self


class LanguageIdentificationConfig(StrictModel):
    """Language identification; runs before the quality profile."""

    enabled: bool = True
    """False trusts each source's `language`."""
    minimum_score: float | None = Field(default=None, ge=0, le=1)
    """One threshold for all languages; null takes each profile's own."""
    model: str | None = None
    """Local fastText model (GlotLID, lid.176); null uses the packaged CLD2 model, no download."""


class MinhashSettings(StrictModel):
    """MinHash deduplication within a language across its sources (datatrove's four stages)."""

    enabled: bool = True
    """False keeps near-duplicates."""
    ngram_words: int = Field(default=5, ge=1)
    """Words per shingle (FineWeb: 5)."""
    buckets: int = Field(default=14, ge=1)
    """LSH buckets (FineWeb: 14)."""
    hashes_per_bucket: int = Field(default=8, ge=1)
    """Hashes per bucket (FineWeb: 8); two documents of similarity s meet with 1-(1-s^8)^14."""


class LineDedupConfig(StrictModel):
    """Removal of lines repeated across the documents of one host."""

    enabled: bool = False
    """True removes such lines (menus, disclaimers, footers)."""
    minimum_documents: int = Field(default=10, ge=2)
    """A line is removed when it occurs in at least this many documents of the host ..."""
    minimum_share: float = Field(default=0.2, gt=0, le=1)
    """... and in at least this share of them."""


class DeduplicationConfig(StrictModel):
    """Deduplication."""

    exact: bool = True
    """Drop documents whose normalised text was seen before, in any source of the language."""
    url: bool = True
    """Drop documents whose address was seen before, in any source of the language."""
    minhash: MinhashSettings = MinhashSettings()
    """Near-duplicates."""
    line_dedup: Annotated[LineDedupConfig, FingerprintedAs("boilerplate")] = LineDedupConfig()
    """Repeated lines of a host."""


class DecontaminationConfig(StrictModel):
    """Removal of documents that contain evaluation data."""

    paths: list[str] = Field(default_factory=list)
    """Evaluation sets: JSON(L), TSV or text, may be compressed; every string field counts."""
    ngram_characters: int = Field(default=50, ge=8)
    """Length of a match, in letters and digits; half of it for Chinese, Japanese and Korean."""
    action: Literal["drop", "report"] = "drop"
    """`report` keeps the documents and only lists the hits."""


class PiiConfig(StrictModel):
    """Masking of personal data, counted per kind."""

    enabled: bool = True
    """False leaves the text as it is."""
    kinds: list[PiiKind] = Field(default_factory=lambda: list(get_args(PiiKind)))
    """What is masked; phone numbers and national ids in the formats of the language's region."""


class HeldoutConfig(StrictModel):
    """Held-out split by document hash: the same documents whatever the tokenizer."""

    fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of documents held out."""
    maximum_documents: int | None = Field(default=2000, gt=0)
    """At most this many documents a source are held out, those of the smallest hash."""
    salt: str = "heldout"
    """Changes which documents are held out."""


class OwnStep(StrictModel):
    """A step of the user's own, or one of datatrove's, in the first pass of the corpus."""

    use: str = Field(pattern=r"^[^\s:]+:[^\s:]+$")
    """``package.module:Class`` of a datatrove PipelineStep."""
    after: StepPoint = "quality"
    """Where it runs. `read`: as read, pages still markup; `urls`: behind the list of blocked addresses;
    `extraction`: the text of pages, normalised; `language`: what is in the language; `quality`: what passes the
    profile."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """What the report calls it; null is the name of the class."""

    @property
    def label(self) -> str:
        """Its name in the report."""
        return self.name or self.use.rpartition(":")[2].rpartition(".")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``with`` gives the constructor."""
        given: dict[str, Any] = getattr(self, "with")
        return given


if TYPE_CHECKING:
    StepConfig = OwnStep
else:
    # `with` is a word of Python, so this field cannot be written like the others.
    StepConfig = create_model(
        "StepConfig",
        __base__=OwnStep,
        __module__=__name__,
        **{
            "with": (dict[str, Any], Field(default_factory=dict, description="Arguments of its constructor."))
        },
    )


class CorpusConfig(StrictModel):
    """The corpus stage: sources, filters, deduplication, held-out split."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Where text comes from."""
    language_identification: LanguageIdentificationConfig = LanguageIdentificationConfig()
    """Language identification."""
    profiles: str | list[str] = "configs/filters"
    """Folder or folders of quality profiles (`<name>.yaml`); the first that has the name wins."""
    blocked_urls: bool = False
    """Drop addresses on datatrove's 4.56M-domain blocklist (862 MB of memory per worker)."""
    deduplication: DeduplicationConfig = DeduplicationConfig()
    """Exact and near-duplicate removal."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Evaluation sets to keep out."""
    pii: PiiConfig = PiiConfig()
    """Masking of personal data."""
    heldout: HeldoutConfig = HeldoutConfig()
    """Held-out split."""
    steps: Annotated[list[StepConfig], OmittedIfDefault] = []
    """Steps of one's own, in their order at each point: see docs/how-to-add.md."""
    on_error: OnError = "skip"
    """Unreadable input, a step of one's own that fails: `skip` counts, samples and goes on; `fail` stops with file,
    line and reason."""
    shard_input_bytes: int = Field(default=64_000_000, gt=0)
    """Input files are grouped into shards of about this size: the unit of work and of resumption."""
    shard_input_files: int = Field(default=500, gt=0)
    """At most this many files in one shard."""
    dropped_samples: int = Field(default=20, ge=0)
    """Dropped documents kept as samples, per source and rule."""
    allow_empty: bool = False
    """False: a source with no document left after filtering is an error."""

    @property
    def profile_folders(self) -> list[str]:
        """The profile folder or folders, as a list."""
        return [self.profiles] if isinstance(self.profiles, str) else list(self.profiles)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names that are unique; written twice: {', '.join(twice)}")
        # File systems may take names that differ in case for one; <name>.heldout.bin is the held-out part of <name>.
        known = {name.casefold(): name for name in names}
        for name in names:
            if (other := known[name.casefold()]) != name:
                raise ValueError(f"source names that differ in more than case, not '{name}' and '{other}'")
            if (other := known.get(f"{name}{_HELDOUT}".casefold(), "")) != "":
                raise ValueError(
                    f"source names whose files do not meet: '{other}' names the held-out files of '{name}' too"
                )
        labels = [step.label for step in self.steps]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"steps with names of their own (`name:`); twice: {', '.join(twice)}")
        return self


class MixtureChangeConfig(StrictModel):
    """Other weights from a token of the training on."""

    from_tokens: int = Field(gt=0)
    """Tokens, counted from the start of training, at which they begin: at the first step from there on."""
    weights: dict[str, float] = Field(min_length=1)
    """Weights by language or source name; what is not named is not read from there on."""


class MixtureConfig(StrictModel):
    """The training mixture, in tokens of the final tokenizer."""

    total_tokens: int = Field(gt=0)
    """Length of the training run in tokens."""
    weights: dict[str, float] | Literal["temperature", "unimax"] | None = None
    """Weights by language or source name; `temperature`; `unimax`; null takes the sources' `weight`."""
    temperature: float = Field(default=3.33, gt=0)
    """`temperature`: share of a language is proportional to tokens^(1/temperature)."""
    max_epochs: float | dict[str, float] = 4.0
    """Most repetitions of a source; a mapping by source or language (others: 4)."""
    changes: Annotated[list[MixtureChangeConfig], OmittedIfDefault] = []
    """Other weights later in the training, as the best data at the end."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if isinstance(self.weights, dict) and not self.weights:
            raise ValueError("at least one weight, or null")
        first = self.weights if isinstance(self.weights, dict) else {}
        for weights in (first, *(change.weights for change in self.changes)):
            for name, weight in weights.items():
                if not weight > 0:
                    raise ValueError(f"weights above 0; leave '{name}' out instead of {weight}")
        limits = self.max_epochs.values() if isinstance(self.max_epochs, dict) else [self.max_epochs]
        if any(not limit > 0 for limit in limits):
            raise ValueError("max_epochs above 0")
        starts = [change.from_tokens for change in self.changes]
        if starts != sorted(set(starts)) or any(start >= self.total_tokens for start in starts):
            raise ValueError(f"changes: from_tokens grow and stay below total_tokens, got {starts}")
        if self.changes and self.weights == "unimax":
            raise ValueError("changes go with weights that are given, null or temperature, not with unimax")
        return self


class TokensConfig(StrictModel):
    """The tokens stage: encoding into Megatron datasets and the mixture."""

    mixture: MixtureConfig
    """Shares and length of training."""
    chat: ChatConfig | None = None
    """How sources of `kind: instruction` are written out; required where there are any."""
    add_bos: bool = True
    """Begin every document with the tokenizer's BOS, where it has one."""
    batch_documents: Annotated[int, NotFingerprinted] = Field(default=256, gt=0)
    """Documents encoded at a time."""
