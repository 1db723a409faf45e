"""The playground: the page's own script, run by Node, against the tokenizers library; the terminal's lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_material import fixture_texts, mistral_base, train_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from tsugiki.cli.tokenizer import app
from tsugiki.experiment.errors import TsugikiError
from tsugiki.experiment.text.hf_tokenizer import write_hf_tokenizer
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.pretrain.conversion.gguf.pre_tokenizers import LLAMA3, QWEN2, TEKKEN
from tsugiki.tokenizer.playground.page import page_data, write_page
from tsugiki.tokenizer.playground.pieces import cut_text, terminal_lines

NODE = shutil.which("node")
LANGUAGES = ("en", "ja", "zh", "vi", "id", "th", "ms", "km", "lo", "my", "tl")
ODD = [
    "", " ", "  two", "a" + " " * 20 + "b  ", "\n\n\ta\r\n", "</s><s>[INST] <0x41> ▁▁x", "e\u0301 ﬁ Å ﷺ", "👩‍👩‍👧 🇯🇵 🏳️‍🌈",
    "I'M we'll ſ DON'T", "1234567 ١٢٣ ½", "\ufeffx\u0085y\u00a0z\u3000w", "\x00\x01", "日本語とEnglishが混ざる", "x\U0010ffff",
    "<|im_start|>user", "a[tool]b  [tool]",
]  # fmt: skip
HELD_OUT = [
    line
    for language in LANGUAGES
    for text in fixture_texts(language)[-3:]
    for line in (text, *text.splitlines())
]


def sentencepiece_like(directory: Path, **options: Any) -> Path:
    lines = [
        line
        for language in ("en", "ja")
        for text in fixture_texts(language)[:6]
        for line in text.splitlines()
        if line
    ]
    settings = {"vocab_size": 800, "model_type": "bpe", "normalization_rule_name": "identity", **options}
    write_hf_tokenizer(train_model(lines, directory / "m.model", **settings), directory)
    return directory


def byte_level(directory: Path, step: Any, normalizer: Any = None, *, whole: bool = False) -> Path:
    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, step, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(fixture_texts("en")[:6] + fixture_texts("vi")[:3], trainer)
    made.add_tokens(["[tool]"])
    made.save(str(directory / "tokenizer.json"))
    return directory


def split(pattern: str) -> Any:
    byte_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_step])


def metaspace(directory: Path) -> Path:
    sentencepiece_like(directory, remove_extra_whitespaces=False)
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"] = None
    document["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return directory


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
GEMMA = {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "\n"], "remove_extra_whitespaces": False}
MAKERS = {
    "mistral": mistral_base,
    "trimmed": lambda folder: sentencepiece_like(folder, remove_extra_whitespaces=True),
    "gemma": lambda folder: sentencepiece_like(folder, **GEMMA),
    "no-bytes": lambda folder: sentencepiece_like(folder, byte_fallback=False, character_coverage=0.98),
    "metaspace": metaspace,
    "gpt2": lambda folder: byte_level(folder, GPT2),
    "smollm": lambda folder: byte_level(folder, DIGITS),
    "llama3": lambda folder: byte_level(folder, split(LLAMA3), whole=True),
    "qwen": lambda folder: byte_level(folder, split(QWEN2), normalizers.NFC()),
    "tekken": lambda folder: byte_level(folder, split(TEKKEN), whole=True),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every tokenizer, opened as the command opens it."""
    found = {}
    for name, make in MAKERS.items():
        directory = tmp_path_factory.mktemp(name)
        make(directory)
        found[name] = open_tokenizer(directory, special_tokens_in_text=False)
    return found


@pytest.fixture(scope="module")
def page(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, made, {"en": fixture_texts("en")[0], "ja": fixture_texts("ja")[0] + "</script><b>"})
    return path


def parts(page: Path) -> tuple[dict[str, Any], str]:
    """Data and script of a page, as a browser sees them."""
    found = re.findall(r"<script([^>]*)>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert [attributes.strip() for attributes, _ in found] == ['type="application/json" id="tokenizers"', ""]
    return json.loads(found[0][1]), found[1][1]


def by_script(page: Path, folder: Path, lines: list[str]) -> dict[str, list[list[int]]]:
    """Ids of lines by the page's own script and data."""
    data, script = parts(page)
    (folder / "script.cjs").write_text(script, encoding="utf-8")
    (folder / "data.json").write_text(json.dumps([data["tokenizers"], lines]), encoding="utf-8")
    (folder / "run.cjs").write_text(
        "const { Tokenizer } = require('./script.cjs'); const [all, lines] = require('./data.json');\n"
        "const out = {}; for (const item of all) { const made = new Tokenizer(item);"
        " out[item.name] = lines.map((line) => made.encode(line)); }\n"
        "process.stdout.write(JSON.stringify(out));\n"
    )
    answer = subprocess.run(
        [NODE, folder / "run.cjs"], capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    ids: dict[str, list[list[int]]] = json.loads(answer.stdout)
    return ids


@pytest.mark.skipif(NODE is None, reason="no Node to run the page's script with")
def test_the_page_cuts_as_the_library_does(page: Path, made: dict[str, Any], tmp_path: Path) -> None:
    lines = [*ODD, *HELD_OUT]
    found = by_script(page, tmp_path, lines)
    assert len(lines) > 60 and list(found) == list(made)
    for name, tokenizer in made.items():
        for line, ids in zip(lines, found[name], strict=True):
            assert ids == tokenizer.encode(line), f"{name}: {line!r}"


def test_a_page_is_one_file_and_escapes_what_it_is_given(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "</script><b>" not in text and not re.search(r"""(src|href)=["']https?:""", text)
    data, _ = parts(page)
    assert data["samples"]["ja"].endswith("</script><b>")
    assert '<button type="button" data-sample="ja">Japanese</button>' in text
    assert [item["name"] for item in data["tokenizers"]] == list(MAKERS)
    assert "1.000" not in re.findall(r"<table.*?</table>", text, re.DOTALL)[0].split("gemma / mistral")[0]


def test_pieces_as_people_read_them(made: dict[str, Any]) -> None:
    cut = cut_text("m", made["mistral"], "a ꧁")
    assert cut.pieces == [" a", " ", "<0xEA>", "<0xA7>", "<0x81>"] and cut.tokens_per_character == 5 / 3
    assert cut_text("g", made["gpt2"], "é\ud7ff[tool]").pieces[-1] == "[tool]"
    assert "".join(cut_text("g", made["gpt2"], " the lamp").pieces) == " the lamp"


@given(st.text(max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_text_steers_the_terminal(made: dict[str, Any], text: str) -> None:
    for colours in (False, True):
        lines = list(terminal_lines([cut_text("a", made["gpt2"], text)], colours=colours))
        assert len(lines) == 2
        assert re.sub(r"\x1b\[(30;48;5;\d+|0)m", "", lines[1]).isprintable()


def test_the_command(made: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("A lamp.\n")
    options = [f"--tokenizer={name}={made[name].directory}" for name in ("mistral", "gpt2")]
    shown = CliRunner().invoke(app, ["show", "A lamp\n", *options])
    lines = shown.stdout.splitlines()
    assert lines[0] == "mistral: 3 tokens, 0.429 a character, 1.000 of the first"
    assert lines[1] == " A| lamp|<0x0A>"
    assert lines[2].startswith("gpt2: ") and "\x1b" not in shown.stdout
    page = tmp_path / "out" / "p.html"
    written = CliRunner().invoke(
        app, ["show", *options, f"--page={page}", f"--text=en={tmp_path / 'en.txt'}"]
    )
    assert written.exit_code == 0 and "A lamp." in unescape(page.read_text(encoding="utf-8"))
    for wrong, said in ((["x", *options, options[0]], "name of its own"), (options, "nothing to show")):
        with pytest.raises(TsugikiError, match=said):
            CliRunner().invoke(app, ["show", *wrong], catch_exceptions=False)


def test_a_step_the_page_does_not_know_is_named(tmp_path: Path) -> None:
    directory = byte_level(tmp_path, GPT2, normalizers.Lowercase())
    with pytest.raises(TsugikiError, match="normalizer Lowercase"):
        page_data("x", open_tokenizer(directory))
