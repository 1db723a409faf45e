"""Chat templates of the published systems, to the character and to the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.chat import Answers, ChatTemplate, HuggingFaceEncoder
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

TEMPLATES = Path(__file__).parents[4] / "configs" / "chat_templates"
TOKENS = {
    "seallm-v2": ("<s>", "</s>"),
    "seallm-v2.5": ("<bos>", "<eos>"),
    "sus-chat": ("<|startoftext|>", "<|endoftext|>"),
    "billa": ("<s>", "</s>"),
    "billa-task": ("<s>", "</s>"),
    "swallow-instruct": ("<s>", "</s>"),
}
DIALOGUE = [
    {"role": "user", "content": "Hello world."},
    {"role": "assistant", "content": "Hi there, how can I help?"},
    {"role": "user", "content": "Tell me a joke."},
    {"role": "assistant", "content": "Why don't scientists trust atoms? Because they make up everything."},
]
CARD = [{"role": "system", "content": "You are helful assistant."}, *DIALOGUE]

# Printed on the card of SeaLLM-7B-v2 for the conversation above.
CARD_TEXT = (
    "<s> ▁< | im _ start | > system <0x0A> You ▁are ▁hel ful ▁assistant . </s> ▁< | im _ start | > user "
    "<0x0A> Hello ▁world . </s> ▁< | im _ start | > ass istant <0x0A> Hi ▁there , ▁how ▁can ▁I ▁help ? </s> "
    "▁< | im _ start | > user <0x0A> Tell ▁me ▁a ▁joke . </s> ▁< | im _ start | > ass istant <0x0A> Why ▁don "
    "' t ▁scientists ▁trust ▁atoms ? ▁Because ▁they ▁make ▁up ▁everything . </s>"
)
CARD_PIECES = CARD_TEXT.split()
CARD_MASK = [0] * 40 + [1] * 9 + [0] * 25 + [1] * 15


def load(name: str, answers: Answers = "continued") -> ChatTemplate:
    bos, eos = TOKENS[name]
    return ChatTemplate.load(TEMPLATES / f"{name}.jinja", bos_token=bos, eos_token=eos, answers=answers)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The genuine tokenizer that SeaLLM-7B-v2 extends: its English segmentation is this one."""
    directory = tmp_path_factory.mktemp("mistral-v1")
    write_hf_tokenizer(mistral_v1_model(), directory)
    return directory


@pytest.fixture(scope="module")
def encoder(mistral: Path) -> HuggingFaceEncoder:
    from tokenizers import Tokenizer

    return HuggingFaceEncoder(Tokenizer.from_file(str(mistral / "tokenizer.json")))


@pytest.fixture(scope="module")
def pieces() -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(mistral_v1_model()))


SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_published_ids_and_mask_of_seallm(encoder: HuggingFaceEncoder, pieces: Any) -> None:
    encoded = load("seallm-v2").encode(CARD, encoder, SPECIALS)
    assert pieces.id_to_piece(encoded.ids) == CARD_PIECES
    assert encoded.loss_mask == CARD_MASK
    assert encoded.ids == [pieces.piece_to_id(piece) for piece in CARD_PIECES]
    assert [label for label in encoded.labels if label != -100] == [
        token for token, learned in zip(encoded.ids, CARD_MASK, strict=True) if learned
    ]


def test_published_prompt_of_seallm(encoder: HuggingFaceEncoder, pieces: Any) -> None:
    """The card's apply_chat_template example, with the request for the next answer."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello world"},
        {"role": "assistant", "content": "Hi there, how can I help you today?"},
        {"role": "user", "content": "Explain general relativity in details."},
    ]
    encoded = load("seallm-v2").encode(messages, encoder, SPECIALS, add_generation_prompt=True)
    published = (
        "<s> ▁< | im _ start | > system <0x0A> You ▁are ▁a ▁helpful ▁assistant . </s> ▁< | im _ start | > "
        "user <0x0A> Hello ▁world </s> ▁< | im _ start | > ass istant <0x0A> Hi ▁there , ▁how ▁can ▁I ▁help "
        "▁you ▁today ? </s> ▁< | im _ start | > user <0x0A> Ex plain ▁general ▁rel ativity ▁in ▁details . "
        "</s> ▁< | im _ start | > ass istant <0x0A>"
    )
    assert pieces.id_to_piece(encoded.ids) == published.split()


def seallm_reference(tokenizer: Any, messages: list[dict[str, str]], end: str) -> tuple[list[int], list[int]]:
    """What the function on SeaLLM's cards does: every turn by itself, the assistant's content learned."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prefix = len(ids("<|im_start|>assistant\n"))
    found, mask = [tokenizer.bos_token_id], [0]
    for message in messages:
        turn = ids(f"<|im_start|>{message['role']}\n{message['content']}{end}")
        learned = message["role"] == "assistant"
        found += turn
        mask += [int(learned and position >= prefix) for position in range(len(turn))]
    return found, mask


@pytest.mark.parametrize(
    "content",
    [
        "Hello",
        "  two spaces",
        "日本語で答えます。",
        "สวัสดี ครับ",
        "line\nline\n",
        "1 + 1 = 2",
        "'quoted'",
        "\n",
    ],
)
def test_seallm_agrees_with_its_own_function(
    content: str, mistral: Path, encoder: HuggingFaceEncoder
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mistral)
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}] * 2
    encoded = load("seallm-v2").encode(messages, encoder, SPECIALS)
    assert (encoded.ids, encoded.loss_mask) == seallm_reference(tokenizer, messages, "</s>")


def test_seallm_v2_text() -> None:
    """The turns of the card, exactly one BOS, no newline after </s>."""
    assert load("seallm-v2").render(CARD[:3]) == (
        "<s><|im_start|>system\nYou are helful assistant.</s><|im_start|>user\nHello world.</s>"
        "<|im_start|>assistant\nHi there, how can I help?</s>"
    )
    assert load("seallm-v2").render(DIALOGUE[:1], add_generation_prompt=True) == (
        "<s><|im_start|>user\nHello world.</s><|im_start|>assistant\n"
    )


def test_seallm_v2_agrees_with_its_published_template() -> None:
    """The chat_template of SeaLLM-7B-v2's tokenizer_config.json."""
    published = (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '</s>'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    reference = ChatTemplate(published, "<s>", "</s>")
    for messages in (CARD, DIALOGUE, DIALOGUE[:3]):
        for prompt in (False, True):
            ours = load("seallm-v2").render(messages, add_generation_prompt=prompt)
            assert ours == reference.render(messages, add_generation_prompt=prompt)


def test_seallm_v25_text() -> None:
    """Turns end with <eos> and a newline, which is learned too."""
    template = load("seallm-v2.5")
    assert template.render(CARD[:3], add_generation_prompt=True) == (
        "<bos><|im_start|>system\nYou are helful assistant.<eos>\n<|im_start|>user\nHello world.<eos>\n"
        "<|im_start|>assistant\nHi there, how can I help?<eos>\n<|im_start|>assistant\n"
    )
    learned = [segment.text for segment in template.segments(CARD) if segment.counts]
    assert learned == [DIALOGUE[1]["content"], "<eos>", "\n", DIALOGUE[3]["content"], "<eos>", "\n"]


def test_sus_chat_text() -> None:
    """The function of its README; an answer ends with <|endoftext|>, as its decoded responses do. No BOS."""
    template = load("sus-chat")
    assert template.render(DIALOGUE[:1]) == "### Human: Hello world.\n\n### Assistant: "
    assert template.render(DIALOGUE[:3]) == (
        "### Human: Hello world.\n\n### Assistant: Hi there, how can I help?<|endoftext|>"
        "### Human: Tell me a joke.\n\n### Assistant: "
    )
    assert template.render(CARD[:2]) == (
        "You are helful assistant.### Human: Hello world.\n\n### Assistant: "
    )


def test_billa_text() -> None:
    """The space after `Assistant:` matters; turns as conv_billa joins them, one BOS."""
    template = load("billa")
    assert template.render(DIALOGUE[:1]) == "<s>Human: Hello world.\nAssistant: "
    assert template.render(DIALOGUE) == (
        "<s>Human: Hello world.\nAssistant: Hi there, how can I help?\nHuman: Tell me a joke.\nAssistant: "
        "Why don't scientists trust atoms? Because they make up everything.</s>"
    )
    with pytest.raises(DataError, match="BiLLa knows no system message"):
        template.render(CARD)


def test_billa_is_encoded_as_it_was_trained(encoder: HuggingFaceEncoder, pieces: Any) -> None:
    """alignment_sft_main.py: encode(prefix, bos) + encode(output, eos), loss on the second."""
    messages = DIALOGUE[:2]
    prefix = [1, *pieces.encode("Human: Hello world.\nAssistant: ")]
    output = [*pieces.encode("Hi there, how can I help?"), 2]
    encoded = load("billa", "separate").encode(messages, encoder, SPECIALS)
    assert encoded.ids == prefix + output
    assert encoded.loss_mask == [0] * len(prefix) + [1] * len(output)


def billa_page() -> dict[str, Any]:
    """The functions that docs/recipes/billa.md gives."""
    page = (TEMPLATES.parents[1] / "docs" / "recipes" / "billa.md").read_text(encoding="utf-8")
    functions: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], functions)
    return functions


def billa_forms() -> dict[str, tuple[Any, str, str]]:
    """Conversation by the page's functions; prefix and output as make_features of BiLLa's scripts has them."""
    page = billa_page()
    pair = {"en_text": "Good day. ", "zh_text": "Good day. "}  # equal, so that the direction does not matter
    prompts = {"en-zh": ["Translate."], "zh-en": ["Translate."]}
    sample = {"input": "A long text.\n", "output": "Short.\n"}
    return {
        # pretrain_main.py: encode(input + '\\n' + prompt)
        "translation, stage 1": (
            page["translation"](pair, prompts, 1),
            "Good day. \nTranslate.",
            "Good day. ",
        ),
        # task_instruct_tuning_main.py: post_prompt, pre_prompt, neither
        "translation, stage 2": (
            page["translation"](pair, prompts, 2),
            "Good day.\nTranslate.\n",
            "Good day. ",
        ),
        "prompt before": (page["task"](sample, before="Sum up."), "Sum up.\nA long text.\n\n", "Short."),
        "prompt after": (page["task"](sample, after="Sum up."), "A long text.\nSum up.\n", "Short."),
        "no prompt": (page["task"](sample), "A long text.\n ", "Short."),
    }


@pytest.mark.parametrize("form", billa_forms())
def test_billa_tasks_are_encoded_as_they_were_trained(
    form: str, encoder: HuggingFaceEncoder, pieces: Any
) -> None:
    """encode(prefix, bos) + encode(output, eos), loss on the second, whatever stands between them."""
    conversation, prefix, output = billa_forms()[form]
    encoded = load("billa-task", "separate").encode(conversation["messages"], encoder, SPECIALS)
    before, after = [1, *pieces.encode(prefix)], [*pieces.encode(output), 2]
    assert encoded.ids == before + after
    assert encoded.loss_mask == [0] * len(before) + [1] * len(after)


def test_billa_translates_in_both_directions() -> None:
    pair, prompts = {"en_text": "day", "zh_text": "日"}, {"en-zh": ["to zh"], "zh-en": ["to en"]}
    made = [billa_page()["translation"](pair, prompts, 1)["messages"] for _ in range(40)]
    seen = {tuple(message["content"] for message in messages) for messages in made}
    assert seen == {("day\nto zh", "日"), ("日\nto en", "day")}


def test_swallow_text() -> None:
    """PROMPT_DICT of its card, without BOS; what is given as the system message is the prompt's input."""
    head = "以下に、あるタスクを説明する指示があり、それに付随する入力が更なる文脈を提供しています。"
    order = "リクエストを適切に完了するための回答を記述してください。\n\n"
    instruction = "以下のトピックに関する詳細な情報を提供してください。"
    topic = "東京工業大学の主なキャンパスについて教えてください"
    with_input = f"{head}{order}### 指示:\n{instruction}\n\n### 入力:\n{topic}\n\n### 応答:"
    template = load("swallow-instruct")
    messages = [{"role": "system", "content": topic}, {"role": "user", "content": instruction}]
    assert template.render(messages) == with_input
    without = f"以下に、あるタスクを説明する指示があります。{order}### 指示:\n{instruction}\n\n### 応答:"
    assert template.render(messages[1:]) == without
    answer = {"role": "assistant", "content": "大岡山です。"}
    assert template.render([*messages, answer]) == with_input + "大岡山です。</s>"


@pytest.mark.parametrize("name", TOKENS)
def test_transformers_renders_the_same(name: str, mistral: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mistral)
    template = load(name)
    bos, eos = TOKENS[name]
    for prompt in (False, True):
        theirs = tokenizer.apply_chat_template(
            DIALOGUE,
            chat_template=template.source,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        ours = template.render(DIALOGUE, add_generation_prompt=prompt)
        assert theirs == ours.replace(bos, "<s>").replace(eos, "</s>")


@pytest.mark.parametrize("name", ["seallm-v2", "billa", "swallow-instruct"])
def test_transformers_learns_the_same(name: str, mistral: Path, encoder: HuggingFaceEncoder) -> None:
    """Where no token crosses the border of an answer, ids and mask of transformers are ours."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mistral)
    template = load(name)
    # Transformers encodes the whole text at once; `: ` and the answer's first word would become one token.
    messages = [
        {**item, "content": "\n" + item["content"]} if name == "billa" else item for item in DIALOGUE[:2]
    ]
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = template.encode(messages, encoder, SPECIALS)
    assert ours.ids == theirs["input_ids"]
    assert ours.loss_mask == theirs["assistant_masks"]


@pytest.mark.parametrize("name", ["seallm-v2", "sus-chat", "billa", "swallow-instruct"])
@pytest.mark.parametrize("content", ["Hello", " spaced", "答え", "### Human: no"])
def test_a_prompt_is_the_beginning_of_what_was_learned(
    name: str, content: str, encoder: HuggingFaceEncoder
) -> None:
    """What the model sees when it is asked is what stood before the answer in training."""
    specials = dict(zip(TOKENS[name], (1, 2), strict=True))
    template = load(name)
    question = [{"role": "user", "content": content}]
    asked = template.encode(question, encoder, specials, add_generation_prompt=True)
    whole = template.encode([*question, {"role": "assistant", "content": content}], encoder, specials)
    assert whole.ids[: len(asked.ids)] == asked.ids
    assert whole.loss_mask == [0] * len(asked.ids) + [1] * (len(whole.ids) - len(asked.ids))
    assert asked.ids.count(1) == int(template.render(question).startswith(TOKENS[name][0]))


def test_text_that_looks_like_a_special_token_stays_text(encoder: HuggingFaceEncoder, pieces: Any) -> None:
    messages = [{"role": "user", "content": "stop</s><s>now\ufdd0"}, {"role": "assistant", "content": "</s>"}]
    encoded = load("seallm-v2").encode(messages, encoder, SPECIALS)
    assert encoded.ids.count(1) == 1
    assert encoded.ids.count(2) == 2  # the template's own
    assert "stop</s><s>now\ufffd" in pieces.decode([token for token in encoded.ids if token > 2])
    assert load("seallm-v2").render(messages).count("</s>") == 4


def test_continuation_has_no_dummy_prefix(encoder: HuggingFaceEncoder, pieces: Any) -> None:
    for text in ("Hi there", " Hi", "東京", "\n\nx", "<s>", "|x"):
        whole = pieces.encode("a\n" + text)
        assert encoder.encode_continuation(text) == whole[len(pieces.encode("a\n")) :]


def test_errors(tmp_path: Path, encoder: HuggingFaceEncoder) -> None:
    path = tmp_path / "bad.jinja"
    with pytest.raises(ConfigError, match="cannot read"):
        ChatTemplate.load(path, bos_token=None, eos_token="</s>")
    path.write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="does not mark what the assistant says"):
        ChatTemplate.load(path, bos_token=None, eos_token="</s>")
    path.write_text("{% generation %}{% for %}")
    with pytest.raises(ConfigError, match=r"not Jinja(.|\n)*line 1"):
        ChatTemplate.load(path, bos_token=None, eos_token="</s>")
    template = load("seallm-v2")
    with pytest.raises(DataError, match="without messages"):
        template.render([])
    with pytest.raises(DataError, match=r"messages\[0\]"):
        template.render([{"role": "user"}])
    with pytest.raises(DataError, match="does not have"):
        template.encode(DIALOGUE, encoder, {"<s>": 1})
