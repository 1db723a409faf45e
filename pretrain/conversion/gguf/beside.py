"""What lies beside a GGUF file: a ``Modelfile`` for ollama and a preset for LM Studio.

Both say how a conversation is written, where an answer ends and how to sample. LM Studio takes the Jinja template as it
is; ollama wants a Go template, which is put together from what stands between the messages of rendered conversations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import read_json, write_json_atomically, write_text_atomically
from tsugiki.experiment.text.chat import ChatTemplate
from tsugiki.pretrain.conversion.gguf.vocabulary import Vocabulary

MODELFILE = "Modelfile"
# generation_config.json -> ollama's parameter and LM Studio's key
_SAMPLING = {
    "temperature": ("temperature", "llm.prediction.temperature"),
    "top_p": ("top_p", "llm.prediction.topPSampling"),
    "top_k": ("top_k", "llm.prediction.topKSampling"),
    "repetition_penalty": ("repeat_penalty", "llm.prediction.repeatPenalty"),
}
_SYSTEM, _USER, _ANSWER, _SECOND = "\ue000s\ue000", "\ue000u\ue000", "\ue000a\ue000", "\ue000v\ue000"


@dataclass(frozen=True)
class Turns:
    """What stands around the messages of a conversation.

    Attributes:
        first: before a user's message that begins the conversation.
        ask: between a user's message and the answer.
        again: between an answer and the next message.
        system: before and after a system message at the beginning; None where the template refuses one, or writes it
            somewhere else.
        ended: an answer ends with the end-of-sequence token.
    """

    first: str
    ask: str
    again: str
    system: tuple[str, str] | None
    ended: bool

    @property
    def stops(self) -> list[str]:
        """Where an answer ends, if no token says so: the next turn's mark (BiLLa's ``Human:``)."""
        mark = self.again.strip()
        return [mark] if mark and not self.ended else []


def read_turns(template: str, bos: str | None, eos: str) -> Turns | None:
    """What a chat template writes around messages; None where it is not simply before and after each."""
    chat = ChatTemplate(template, bos_token=bos, eos_token=eos)

    def between(*messages: tuple[str, str]) -> list[str] | None:
        said = [{"role": role, "content": content} for role, content in messages]
        try:
            rest = chat.render(said, add_generation_prompt=True)
        except DataError:
            return None
        parts = []
        for _, content in messages:
            before, found, rest = rest.partition(content)
            if not found:
                return None
            parts.append(before)
        return [*parts, rest]

    plain = between(("user", _USER), ("assistant", _ANSWER), ("user", _SECOND))
    if plain is None or plain[1] != plain[3]:
        return None
    begin = bos if bos and plain[0].startswith(bos) else ""
    system = between(("system", _SYSTEM), ("user", _USER))
    usable = system is not None and system[2] == plain[1]
    around = (system[0].removeprefix(begin), system[1]) if system is not None and usable else None
    return Turns(plain[0].removeprefix(begin), plain[1], plain[2], around, plain[2].startswith(eos))


def go_template(turns: Turns) -> str:
    """ollama's template; it writes the begin-of-sequence token by itself."""

    def text(value: str) -> str:
        return f"{{{{ {json.dumps(value, ensure_ascii=False)} }}}}" if value else ""

    before, after = turns.system or ("", "")
    return (
        "{{- range $i, $message := .Messages }}"
        f'{{{{- if eq .Role "system" }}}}{text(before)}{{{{ .Content }}}}{text(after)}'
        f'{{{{- else if eq .Role "user" }}}}{{{{- if eq $i 0 }}}}{text(turns.first)}{{{{- end }}}}'
        f"{{{{ .Content }}}}{text(turns.ask)}"
        f"{{{{- else }}}}{{{{ .Content }}}}{text(turns.again)}"
        "{{- end }}{{- end }}"
    )


def write_beside(path: Path, hf_dir: Path, vocabulary: Vocabulary) -> list[Path]:
    """Write both files into the folder of a GGUF file; an existing ``Modelfile`` of another model is kept.

    Args:
        path: of the GGUF file.
        hf_dir: for ``generation_config.json``.
        vocabulary: tokens and chat template.
    """
    config = hf_dir / "generation_config.json"
    settings = read_json(config) if config.is_file() else {}
    sampling = {key: settings[key] for key in _SAMPLING if isinstance(settings.get(key), (int, float))}
    surfaces = {kind: vocabulary.tokens[index] for kind, index in vocabulary.ids.items()}
    turns = None
    if vocabulary.chat_template is not None and "eos" in surfaces:
        turns = read_turns(vocabulary.chat_template, surfaces.get("bos"), surfaces["eos"])
    stops = [surfaces[kind] for kind in ("eos", "eot") if kind in surfaces] + (turns.stops if turns else [])
    modelfile = path.with_name(MODELFILE)
    if modelfile.exists() and f"FROM ./{path.name}" not in modelfile.read_text(encoding="utf-8").splitlines():
        modelfile = path.with_name(f"{path.stem}.{MODELFILE}")
    write_text_atomically(modelfile, _modelfile(path.name, vocabulary, turns, stops, sampling))
    preset = path.with_name(f"{path.stem}.preset.json")
    write_json_atomically(preset, _preset(path.stem, vocabulary.chat_template, stops, sampling))
    return [modelfile, preset]


def _modelfile(
    name: str, vocabulary: Vocabulary, turns: Turns | None, stops: list[str], sampling: dict[str, Any]
) -> str:
    lines = [f"FROM ./{name}"]
    if turns is not None and '"""' not in go_template(turns):
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
        if turns.system is None:
            lines.append("# The chat template has no place for a system message before the user's.")
    else:
        told = (
            "has a chat template that ollama's form cannot say"
            if vocabulary.chat_template
            else "is no chat model"
        )
        lines += [f"# The model {told}: text is continued as it comes.", 'TEMPLATE """{{ .Prompt }}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER {_SAMPLING[key][0]} {value}" for key, value in sampling.items()]
    return "\n".join(lines) + "\n"


def _preset(name: str, template: str | None, stops: list[str], sampling: dict[str, Any]) -> dict[str, Any]:
    fields: list[dict[str, Any]] = [{"key": "llm.prediction.stopStrings", "value": stops}]
    for key, value in sampling.items():
        switched = key in ("top_p", "repetition_penalty")
        fields.append(
            {"key": _SAMPLING[key][1], "value": {"checked": True, "value": value} if switched else value}
        )
    if template is not None:
        prompt = {"type": "jinja", "stopStrings": stops, "jinjaPromptTemplate": {"template": template}}
        fields.append({"key": "llm.prediction.promptTemplate", "value": prompt})
    return {
        "identifier": f"@local:{name}",
        "name": name,
        "changed": False,
        "operation": {"fields": fields},
        "load": {"fields": []},
    }
