"""Configuration of the vocabulary stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tsugiki.experiment.config.fingerprint import NotFingerprinted, OmittedIfDefault
from tsugiki.experiment.config.strict import StrictModel

GateName = Literal[
    "reachable", "protected", "slow_equals_fast", "lossless", "contiguous", "loads", "specials"
]
Pretokeniser = Literal["none", "mecab", "jieba", "thai", "khmer", "lao", "burmese"]


class AutoSizeConfig(StrictModel):
    """``size: auto``: where the curve of tokens saved per added row stops paying.

    A row costs parameters and FLOPs of the model that is going to be trained; the chosen size is the
    one after which a further piece saves less compute per token than its output row costs.
    """

    minimum: int = Field(default=1024, ge=1)
    """Smallest extension considered, in pieces."""
    maximum: int = Field(default=65536, ge=1)
    """Largest extension considered, in pieces."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the model; null reads ``config.json`` of the base, or takes 4096 where there is none."""
    parameters: int | None = Field(default=None, ge=1)
    """Parameters without embedding and output rows; null derives them from ``config.json`` of the
    base, or takes 7e9 where there is none."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) must not exceed maximum ({self.maximum})")
        return self


class ExtendConfig(StrictModel):
    """How the vocabulary is extended."""

    size: Annotated[int, Field(ge=1)] | Literal["auto"] = 16384
    """Pieces to add before rounding up, or ``auto`` for the knee of the measured curve."""
    languages: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Target languages and their weights, e.g. ``{ja: 1.0, zh: 0.5}``: relative importance of saving
    a given *proportion* of a language's tokens, whatever the amount of its text."""
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Most pieces a language may take, e.g. ``{zh: 4000}``; a language that is not named has no limit."""
    sample_bytes: int = Field(default=50_000_000, ge=1000)
    """UTF-8 bytes of training text in all; the budget is shared by weight and enforced while streaming."""
    protect: list[str] = Field(default_factory=lambda: ["en"])
    """Languages whose segmentation must not change at all; their corpus text (training and held-out)
    vetoes every candidate piece that would change it."""
    protect_bytes: int = Field(default=20_000_000, ge=0)
    """UTF-8 bytes of protected text that candidates are tested on."""
    protect_unseen: bool = True
    """Also test Latin pieces on the words and names that the protected languages use at large (wordfreq), and refuse
    those from inside of words that occur in any protected word, and names: for English that the stage has
    not seen. Indonesian, Malay and Tagalog then need 8-12 % more tokens."""
    protect_code: bool = True
    """Also protect program code and numbers (a built-in sample plus any protected source)."""
    multiple_of: int = Field(default=128, ge=8)
    """The final vocabulary is rounded up to a multiple of this with reserved, never emitted pieces."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Tensor-parallel size of the training: the final size is also divisible by 8 times this."""
    method: Literal["continued", "sentencepiece"] = "continued"
    """``continued``: merges learned on top of the base model's own segmentation. ``sentencepiece``: an
    independent SentencePiece BPE model whose target-script pieces are merged in (the usual recipe)."""
    normalize: Literal["nfkc", "nfc", "none"] = "nfkc"
    """Unicode normalisation of the training text only; the tokenizer's own normaliser is never changed."""
    phrases: list[str] | None = None
    """Languages whose pieces may be several words (▁có▁thể), of a SentencePiece base: a Vietnamese word is
    several syllables between spaces, and phrases save tokens where pieces inside words would change English.
    Null: those written in Latin."""
    damping: float = Field(default=1.0, gt=0, le=1)
    """Exponent on the count of a repeated segment: 1 counts plainly, less plays boilerplate down."""
    scripts: dict[str, list[str]] = Field(default_factory=dict)
    """Unicode scripts of a language that is not in the built-in table, e.g. ``{xx: [Cyrillic]}``."""
    size_exponent: float = Field(default=0.4, ge=0, le=1)
    """Languages also count by their amount of training text to this power: 0 not at all, 1 as plain BPE
    on the joint text does."""
    character_factor: float = Field(default=3.0, gt=0)
    """How much more a token counts that is saved by giving a character its own row than one saved by a merge:
    characters carry over to other kinds of text better than words do."""
    everyday_share: float = Field(default=0.02, ge=0, lt=1)
    """Where a language has no word list: characters of everyday use (of a national standard, or the whole
    alphabet) count as if this share of the letters were drawn evenly from them, for other text holds them
    even where the sample does not."""
    word_lists: dict[str, str] = Field(default_factory=dict)
    """How often words are used at large, counted in beside the sample so that pieces carry over to other
    kinds of text, e.g. ``{th: pythainlp, km: lists/khmer.tsv, vi: none}``: ``wordfreq``, ``pythainlp``
    (Thai), a file with a word, a tab and its count on each line, or ``none``. A language that is not named
    has wordfreq's list where there is one."""
    word_list_share: float = Field(default=0.2, ge=0, lt=1)
    """Part of a language's letters that comes from its word list."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """What is maximised: 0 the sum over languages of the proportion of tokens saved; 1 the sum of its
    logarithms, which goes on serving languages that are already short."""
    maximum_piece_characters: int = Field(default=16, ge=2)
    """Longest piece in characters."""
    maximum_piece_bytes: Annotated[int, OmittedIfDefault] = Field(default=32, ge=4, le=48)
    """Longest piece in UTF-8 bytes of the text it stands for. llama-cpp-python decodes each token into 32 bytes and
    silently drops a longer one, so more (16 Thai or Khmer characters are 48) is for models that it never serves."""
    minimum_count: int = Field(default=5, ge=1)
    """A piece must occur at least this often in the sample."""
    pretokenise: dict[str, Pretokeniser] = Field(default_factory=dict)
    """Word segmentation that pieces may not cross, by language, e.g. ``{ja: mecab, th: thai}``."""
    waive: list[GateName] = Field(default_factory=list)
    """Gates whose failure is shown in red in the report instead of stopping the run."""
    gate_bytes_per_language: int = Field(default=1_000_000, ge=1)
    """Held-out UTF-8 bytes per language on which the gates are checked."""
    auto: AutoSizeConfig = AutoSizeConfig()
    """Settings of ``size: auto``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, keys in (
            ("quotas", self.quotas),
            ("pretokenise", self.pretokenise),
            ("phrases", self.phrases or []),
            ("scripts", self.scripts),
            ("word_lists", self.word_lists),
        ):
            unknown = sorted(set(keys) - set(self.languages))
            if unknown:
                raise ValueError(
                    f"{field} names {', '.join(unknown)}, which languages does not list "
                    f"({', '.join(self.languages)})"
                )
        both = sorted(set(self.protect) & set(self.languages))
        if both:
            raise ValueError(
                f"{', '.join(both)} cannot be extended and protected at once: take it out of one of the two"
            )
        if self.multiple_of % 8:
            raise ValueError(f"multiple_of must be a multiple of 8, not {self.multiple_of}")
        allowed = sum(self.quotas.values())
        limited = set(self.quotas) == set(self.languages)
        if limited and isinstance(self.size, int) and allowed < self.size:
            raise ValueError(
                f"the quotas allow {allowed} pieces in all, fewer than size {self.size}: "
                "raise a quota, leave a language without one, or lower size"
            )
        return self


class TokenizerConfig(StrictModel):
    """The vocabulary stage."""

    extend: ExtendConfig | None = None
    """How to extend the base vocabulary; null keeps it as it is."""
    report_bytes_per_language: Annotated[int, NotFingerprinted] = Field(default=1_000_000, ge=1)
    """Held-out UTF-8 bytes per language on which the efficiency report is measured."""
