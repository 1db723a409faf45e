"""Model families: all that is said about one architecture of Hugging Face stands in one file.

A family is found by the ``model_type`` of ``config.json``. It says what transformers assumes where that file is
silent, which layers the model has, what its tensors are called and what is written on export. A file in
``experiment/model/families`` adds a family; so does an installed package with an entry point that names a module::

    [project.entry-points."tsugiki.families"]
    seed_oss = "my_package.seed_oss"

This lies in ``experiment``, because the vocabulary's cost (``tokenizer``) and the conversion (``pretrain``) both ask
for it and neither may import the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

from tsugiki.experiment.config.registry import Registry
from tsugiki.experiment.errors import CheckpointError, ConfigError

ENTRY_POINTS = "tsugiki.families"
# Far above any model (Llama 3.1 405B: 126 layers, sizes up to 128,256 rows), far below what fills the memory.
_MOST_LAYERS = 10_000
_LARGEST_SIZE = 1 << 31
_LARGEST_NUMBER = 1e30
_SHOWN_CHARACTERS = 200
ROPE_TYPES = ("linear", "llama3", "yarn")
Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class HfConfig:
    """A ``config.json`` with transformers' defaults for what it leaves out.

    Args:
        values: its contents.
        defaults: what the family assumes for absent keys.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: object) -> None:
        self.values = values
        self.defaults = defaults
        self.where = where

    def get(self, key: str, fallback: Any = None) -> Any:
        """The value, or transformers' default; an explicit null counts as left out."""
        value = self.values.get(key)
        return self.defaults.get(key, fallback) if value is None else value

    def get_or_null(self, key: str) -> Any:
        """The value, where an explicit null differs from a key that is left out."""
        return self.values.get(key, self.defaults.get(key))

    def size(self, key: str, fallback: Any = None) -> int:
        """A required positive whole number, below what no model reaches.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.get(key, fallback)
        # Tables of every layer are made before any weight is looked at.
        limit = _MOST_LAYERS if key == "num_hidden_layers" else _LARGEST_SIZE
        if type(value) is not int or not 0 < value <= limit:
            raise self.unsupported(key, value, f"a positive whole number up to {limit:,}")
        return value

    def number(self, key: str, fallback: Any = None) -> float:
        """A required finite number.

        Raises:
            CheckpointError: it is something else, such as a string of digits.
        """
        return self.as_number(key, self.get(key, fallback))

    def as_number(self, key: str, value: object) -> float:
        """A value of a setting as a finite number; see :meth:`number`."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST_NUMBER:
            raise self.unsupported(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, fallback: bool = False) -> bool:
        """A switch.

        Raises:
            CheckpointError: neither true nor false: the string "false" would be true.
        """
        value = self.get(key, fallback)
        if not isinstance(value, bool):
            raise self.unsupported(key, value, "true or false")
        return value

    def unsupported(self, key: str, got: object, expected: str) -> CheckpointError:
        """An error about one setting."""
        return CheckpointError(
            f"cannot use this model: {key}",
            where=self.where,
            got=repr(got)[:_SHOWN_CHARACTERS],
            expected=expected,
        )


@dataclass(frozen=True)
class TensorNames:
    """Names of a family's tensors, without ``.weight`` and ``.bias``; a layer's are relative to the layer.

    Attributes:
        qkv: tensors of the query, key and value projections, each with the rows it holds from top to bottom:
            ``q`` all queries, ``k`` all keys (values are as wide). One fused tensor is ``{"qkv_proj": "qkk"}``.
        gate_up: tensors of gate and up projection; ``f`` is the feed-forward width.
        attention_output: projection of the attention's result.
        mlp_output: projection of the feed-forward layer's result.
        attention_norm: norm before attention.
        mlp_norm: norm before the feed-forward layer.
        earlier: endings of names in older releases, and what they are now.
    """

    qkv: Mapping[str, str] = field(
        default_factory=lambda: {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "k"}
    )
    gate_up: Mapping[str, str] = field(default_factory=lambda: {"mlp.gate_proj": "f", "mlp.up_proj": "f"})
    attention_output: str = "self_attn.o_proj"
    mlp_output: str = "mlp.down_proj"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    earlier: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GgufForm:
    """How llama.cpp knows an architecture.

    Attributes:
        architecture: its name there; the names of tensors follow from it (``gguf.get_tensor_name_map``).
        interleaved_rope: rotary positions pair neighbouring rows of a head, where transformers pairs the two halves;
            queries and keys are reordered for it.
    """

    architecture: str
    interleaved_rope: bool = False


@dataclass(frozen=True)
class Biases:
    """Which projections of a layer have a bias."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False


class Family:
    """One architecture; what a subclass does not override is as in Llama 1.

    Nothing is instantiated: a family is a table of facts, some of which depend on ``config.json``.
    """

    architectures: ClassVar[tuple[str, ...]]
    """Classes that ``architectures`` of config.json may name; the first one is written on export."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What transformers assumes where config.json is silent (``configuration_<family>.py``)."""
    converted_to: ClassVar[str | None] = None
    """``model_type`` that the grafted model gets, where its weights are those of another family."""
    names: ClassVar[TensorNames] = TensorNames()
    """What its tensors are called."""
    gguf: ClassVar[GgufForm | None] = None
    """What it is in llama.cpp; None where that does not know it, or nobody has tried."""
    norm_offset: ClassVar[float] = 0.0
    """Added to the weight of RMSNorm before it multiplies."""
    full_attention: ClassVar[Mapping[str, Any]] = {}
    """Settings of config.json that switch a sliding window off, for models made from scratch."""

    @classmethod
    def fields(cls, config: HfConfig, name: str) -> dict[str, Any]:
        """Fields of :class:`tsugiki.experiment.model.model_spec.ModelSpec`.

        Args:
            config: what config.json says.
            name: the family's name.

        Raises:
            CheckpointError: a setting that cannot be represented.
        """
        cls.check_architecture(config)
        hidden_size = config.size("hidden_size")
        heads = config.size("num_attention_heads")
        biases = cls.biases(config)
        theta, scaling = cls.rope(config)
        return {
            "family": cls.converted_to or name,
            "layers": config.size("num_hidden_layers"),
            "hidden_size": hidden_size,
            "ffn_size": config.size("intermediate_size"),
            "heads": heads,
            "kv_heads": config.size("num_key_value_heads", heads),
            "head_dim": config.size("head_dim", hidden_size // heads),
            "vocabulary_size": config.size("vocab_size"),
            "max_positions": config.size("max_position_embeddings"),
            "norm_epsilon": config.number("rms_norm_eps", 1e-6),
            "norm_offset": cls.norm_offset,
            "activation": cls.activation(config),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "sliding_window": cls.sliding_window(config),
            "tied_embeddings": config.flag("tie_word_embeddings"),
            "embedding_scale": cls.embedding_scale(hidden_size),
            "qkv_bias": biases.qkv,
            "output_bias": biases.output,
            "mlp_bias": biases.mlp,
        }

    @classmethod
    def check_architecture(cls, config: HfConfig) -> None:
        """Refuse a model of this family that is no language model (a classifier, an encoder).

        Raises:
            CheckpointError: config.json names other classes only.
        """
        given = config.get("architectures") or []
        if not isinstance(given, list):
            raise config.unsupported("architectures", given, "a list of names")
        if given and not {str(name).lower() for name in given} & {name.lower() for name in cls.architectures}:
            raise config.unsupported("architectures", given, f"one of {', '.join(cls.architectures)}")

    @classmethod
    def biases(cls, config: HfConfig) -> Biases:
        """Which projections have a bias."""
        return Biases()

    @classmethod
    def embedding_scale(cls, hidden_size: int) -> float:
        """Factor on the input embeddings."""
        return 1.0

    @classmethod
    def sliding_window(cls, config: HfConfig) -> int | None:
        """Tokens a position may look back at, in every layer; None for full attention."""
        return None

    @classmethod
    def activation(cls, config: HfConfig) -> Activation:
        """Activation of the gate."""
        return activation_of(config, config.get("hidden_act", "silu"))

    @classmethod
    def rope(cls, config: HfConfig) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling: ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``."""
        parameters = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
        if not isinstance(parameters, Mapping):
            raise config.unsupported("rope_parameters", parameters, "a mapping")
        theta = config.as_number(
            "rope_theta", parameters.get("rope_theta", config.get("rope_theta", 10000.0))
        )
        scaling = {
            key: value for key, value in parameters.items() if key not in ("rope_theta", "type", "rope_type")
        }
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        share = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if share not in (None, 1.0):
            raise config.unsupported("partial_rotary_factor", parameters, "rotary positions over whole heads")
        if kind == "default":
            return theta, None
        if kind not in ROPE_TYPES:
            raise config.unsupported("rope_type", kind, f"default, {', '.join(ROPE_TYPES)}")
        original = config.values.get("original_max_position_embeddings")
        if original is not None:
            scaling.setdefault("original_max_position_embeddings", original)
        for key, value in scaling.items():
            if value is not None and not isinstance(value, bool):
                config.as_number(f"{kind} {key}", value)
        return theta, {"rope_type": kind, **scaling}

    @classmethod
    def exported_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the grafted model, from the base's."""
        # Code that came with the base is not carried along, and transformers has its own for every family.
        written = {key: value for key, value in config.items() if key != "auto_map"}
        if cls.converted_to is not None:
            written["model_type"] = cls.converted_to
            written["architectures"] = [find_family(cls.converted_to).architectures[0]]
        return written


FAMILIES: Registry[type[Family]] = Registry("model family", ["tsugiki.experiment.model.families"])


def family_names() -> list[str]:
    """``model_type`` of every known family."""
    _load_installed()
    return FAMILIES.names()


def find_family(model_type: str, where: object = None) -> type[Family]:
    """The family of a ``model_type`` as ``config.json`` spells it.

    Args:
        model_type: e.g. ``llama``; capitals do not matter (Yi's first release said ``Yi``).
        where: place of the name, for the message.

    Raises:
        ConfigError: no such family, with the known ones; or an installed one cannot be imported.
    """
    _load_installed()
    return FAMILIES.get(model_type.lower(), where)


def spec_fields(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """What ``config.json`` says, as fields of :class:`tsugiki.experiment.model.model_spec.ModelSpec`.

    Raises:
        ConfigError: no such family.
        CheckpointError: a setting that cannot be represented, named with its value.
    """
    model_type = str(config.get("model_type", ""))
    family = find_family(model_type, f"{where}: model_type")
    read = HfConfig(config, family.defaults, where)
    try:
        return family.fields(read, model_type.lower())
    except (TypeError, ValueError, ArithmeticError) as error:  # a list where a name belongs, and the like
        raise CheckpointError(
            "cannot use this model: a setting is of another type than it should be",
            where=where, got=f"{type(error).__name__}: {error}", expected="a config.json as transformers writes it",
        ) from error  # fmt: skip


def activation_of(config: HfConfig, name: str) -> Activation:
    """The activation of a name of transformers.

    Raises:
        CheckpointError: none that the layers have.
    """
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise config.unsupported("hidden_act", name, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


@cache
def _load_installed() -> None:
    """Import the modules that installed packages offer as families."""
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda item: item.name):
        try:
            entry.load()
        # Any error may come out of a module that is not ours while it is imported.
        except Exception as error:
            package = "" if entry.dist is None else f" of package {entry.dist.name}"
            raise ConfigError(
                "an installed model family cannot be imported",
                where=f"entry point {entry.name} in {ENTRY_POINTS}{package}",
                got=f"{entry.value}: {type(error).__name__}: {error}",
                fix="repair that package, or uninstall it",
            ) from error
