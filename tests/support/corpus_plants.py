"""Documents that one rule of a shipped quality profile removes, made out of the fixture texts.

Nothing here reads a threshold: a profile that lets one of them through, or drops it for another
reason, is a profile that changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import regex

from tsugiki.data.common.segmentation import tokenizer_for
from tsugiki.data.profiles import Profile

FOREIGN = "Esta página trata de la historia de la ciudad y de sus habitantes durante los últimos siglos.\n"
RUSSIAN = "Эта страница рассказывает об истории города и его жителей за последние несколько столетий. "
LATIN = ("vi", "id", "ms", "tl", "en")


class Plants:
    """Makes the documents of a language.

    Args:
        language: the language.
        texts: its fixture texts, a paragraph each.
        profile: for the words of its lists and the way it cuts words.
    """

    def __init__(self, language: str, texts: Sequence[str], profile: Profile) -> None:
        self.language = language
        self.texts = list(texts)
        self.third = list(texts[:: max(3, len(texts) // 10)])
        self.profile = profile
        self.rng = random.Random(3)
        self.stop = {"zh": "。", "my": "။", "km": "។"}.get(language, "." if language in LATIN else "")
        self.space = " " if language in LATIN else ""

    def units(self, text: str) -> list[str]:
        """Words as the profile cuts them."""
        return tokenizer_for(self.profile.segmentation).word_tokenize(text)

    def make(self) -> dict[str, str]:
        """Rule: document."""
        sections: dict[str, Callable[[], dict[str, str]]] = {
            "length": self.length,
            "language_identification": self.identified,
            "characters": self.characters,
            "japanese": self.japanese,
            "banned_words": self.banned,
            "stop_words": self.stop_words,
            "diversity": self.diversity,
            "sentences": self.sentences,
            "character_ngrams": self.character_ngrams,
            "repetition": self.repetition,
            "fineweb": self.fineweb,
            "gopher": self.gopher,
        }
        found: dict[str, str] = {}
        for name, plants in sections.items():
            if getattr(self.profile, name) is not None:
                found |= plants()
        return found

    def length(self) -> dict[str, str]:
        """Too short, too long, no letters."""
        found = {"length.few_letters": self.texts[0][:20] + " 12345" * 100}
        if self.language in ("ja", "zh"):
            found["length.too_short"] = self.texts[0][:35]
        if self.language == "zh":
            found["length.too_long"] = "\n".join(self.texts * 80)
        return found

    def identified(self) -> dict[str, str]:
        """Another language."""
        return {"language.is_es": FOREIGN * 8}

    def characters(self) -> dict[str, str]:
        """Another script after the beginning that is identified; symbols; digits."""
        text = "\n".join(self.texts)
        long = text * (20_000 // len(text) + 1)
        lines = "\n".join(self.third)
        found = {
            "characters.other_script": long + RUSSIAN * (len(long) * 4 // len(RUSSIAN)),
            "characters.symbols": lines + "\n" + "★☆◆◇■□" * (len(lines) // 4),
        }
        if self.language == "zh":
            found["characters.digits"] = lines + "\n" + "20240115" * (len(lines) // 12)
        return found

    def japanese(self) -> dict[str, str]:
        """Few Japanese letters, little of them, little hiragana, much katakana."""
        text = "\n".join(self.third)
        places = iter(range(10**6))
        return {
            "japanese.few_letters": text[:330] + "\n" + "12345 " * 25,
            "japanese.little_japanese": text + "\n" + "12345 " * 250,
            "japanese.little_hiragana": regex.sub(
                r"\p{Hiragana}",
                lambda found: found[0] if next(places) % 5 == 0 else "",
                "\n".join(self.texts),
            ),
            "japanese.much_katakana": regex.sub(r"\p{Han}", "テスト", text),
        }

    def banned(self) -> dict[str, str]:
        """A tenth of the text in words of the list."""
        section = self.profile.banned_words
        assert section is not None
        words = section.words * 9
        text = "\n".join(self.third)
        while sum(map(len, words)) > len(text) // 6:
            words.pop()
        return {"banned_words.share": text + "\n" + " ".join(words)}

    def stop_words(self) -> dict[str, str]:
        """The text without its function words."""
        section = self.profile.stop_words
        assert section is not None
        words = sorted(section.words, key=len, reverse=True)
        alternatives = "|".join(map(regex.escape, words))
        text = "\n".join(self.third)
        if self.language in LATIN:
            return {
                "stop_words.few_different": regex.sub(rf"\b(?:{alternatives})\b ?", "", text, flags=regex.I)
            }
        filler = {"ja": "ぬ", "zh": "山", "th": "ฟ", "km": "ហ", "lo": "ຟ", "my": "ဟ"}[self.language]
        name = "few" if self.language == "zh" else "few_different"
        found = {f"stop_words.{name}": regex.sub(alternatives, filler, text)}
        if self.language == "zh":
            found["stop_words.few_different"] = regex.sub(alternatives, "的", text)
        return found

    def diversity(self) -> dict[str, str]:
        """Too few different characters; text that says one thing again, or nothing."""
        if self.language == "zh":
            few = "".join(self.rng.choice("的的的是我不人在") for _ in range(55))
            return {"diversity.few_characters": self.texts[0] * 20, "diversity.entropy": few}
        noise = "".join(
            chr(self.rng.randrange(0x3041, 0x3094))
            if self.rng.random() < 0.24
            else chr(self.rng.randrange(0x4E00, 0x9F00))
            for _ in range(420)
        )
        lines = [noise[start : start + 40] + "。" for start in range(0, 420, 40)]
        return {
            "diversity.compresses_well": "\n".join(self.third * 3),
            "diversity.compresses_badly": "\n".join(lines),
        }

    def sentences(self) -> dict[str, str]:
        """Japanese: repeated paragraphs and sentences, sentences of the wrong length."""
        lines = self.third
        text = "\n".join(lines)
        short = ["はい、そうです。"] * 7
        two = regex.findall("[^。]+。", "".join(self.texts[:10]))
        return {
            "sentences.duplicate_paragraphs": "\n".join([*lines, *short]),
            "sentences.duplicate_paragraph_characters": "\n".join([*lines, *lines[:3]]),
            "sentences.duplicate_sentences": "".join([*lines, *short * 3]),
            "sentences.duplicate_sentence_characters": "".join([*two, *sorted(two, key=len)[-8:]]),
            "sentences.short": text.replace("、", "。"),
            "sentences.long": text.replace("。", "、"),
            "sentences.one_too_long": text + "\n" + "".join(self.texts[1:4]).replace("。", "、"),
            "sentences.ellipsis": regex.sub("。$", "…", text, flags=regex.M),
        }

    def character_ngrams(self) -> dict[str, str]:
        """A run of one character, and a passage of a third told twice."""
        runs = "\n".join("あ" * length + "。" for length in range(40, 49))
        text = "\n".join(self.third)
        passage = "".join(self.third)[25:275]
        again = "\n".join(
            [text[:400] + passage[:80], passage[80:160] + text[400:700], passage[160:] + text[700:]]
        )
        return {"character_ngrams.top_2": text + "\n" + runs, "character_ngrams.duplicate_5": again}

    def repetition(self) -> dict[str, str]:
        """Paragraphs, lines, phrases and passages that come again."""
        lines = self.third
        word = self.space.join(self.units(lines[0])[:2])
        phrase = self.units("".join(lines))[: max(2, round(2 * self.profile.units_per_word))]
        text = "\n".join(lines)
        row = self.space.join(phrase) + self.space
        words = self.units("\n".join(self.texts))
        passage = self.space.join(words[len(words) // 2 + 3 : len(words) // 2 + 3 + 2 * len(words) // 5])
        n = round(2 * self.profile.units_per_word), round(5 * self.profile.units_per_word)
        return {
            "repetition.dup_para_frac": "\n\n".join([*lines, *[word] * 9]),
            "repetition.dup_para_char_frac": "\n\n".join([*lines, *sorted(lines, key=len)[-3:]]),
            "repetition.dup_line_frac": "\n".join([*lines, *[word] * 200]),
            "repetition.dup_line_char_frac": "\n".join([*lines, *sorted(lines, key=len)[-3:]]),
            f"repetition.top_{n[0]}_gram": text + row * (3 * len(text) // len(row)),
            f"repetition.duplicated_{n[1]}_n_grams": "\n".join([*self.texts, passage + self.stop]),
        }

    def fineweb(self) -> dict[str, str]:
        """Lines without an end, short ones, repeated ones, a list."""
        lines = self.third
        words = [word for word in self.units("\n".join(self.texts)) if word[0].isalpha()]
        width = 6 if self.language in LATIN else 5
        groups = [words[start : start + width] for start in range(0, len(words), width)]
        as_list = "\n\n".join(
            self.space.join(group) + (self.stop if place % 2 else "") for place, group in enumerate(groups)
        )
        found = {"fineweb.list_ratio": as_list}
        if self.language in (*LATIN, "zh"):
            found["fineweb.line_punct_ratio"] = "\n".join(line.rstrip(".。!?！？\"”') ") for line in lines)
        if self.language == "en":
            short = [words[start : start + 4] for start in range(0, len(words) // 2, 4)]
            found["fineweb.short_line_ratio"] = "\n".join(" ".join(group) + "." for group in short)
        return found | {"fineweb.char_dup_ratio": self._headings()}

    def _headings(self) -> str:
        """Headings below five words each, each of them twice: a ninth of the text."""
        body = self.texts
        if self.stop:
            body = [part.strip() for text in body for part in regex.findall("[^.。။៕!！？?]+.?", text)]
        units = [unit for unit in dict.fromkeys(self.units("".join(body))) if unit[0].isalpha()]
        size = max(4, round(5 * self.profile.units_per_word) - 1)
        if self.language in LATIN:
            units.sort(key=lambda unit: (-len(unit), unit))
        headings: list[str] = []
        while sum(map(len, headings)) < 0.15 * sum(map(len, body)):
            heading = self.space.join(self.rng.sample(units[:120] if self.language in LATIN else units, size))
            headings.append(heading)
        lines = list(body)
        for place, heading in enumerate(headings):
            lines.insert(2 * place + 1, heading)
        rest = iter(self.rng.sample(headings, len(headings)))
        return "\n".join(
            line
            for text in lines
            for line in ([text] if text in headings else [text, next(rest, "")])
            if line
        )

    def gopher(self) -> dict[str, str]:
        """Word counts and lengths, symbols, bullets, numbers."""
        lines = self.third
        text = "\n".join(lines)
        latin = self.language in LATIN
        found = {
            "gopher.gopher_too_many_bullets": "\n".join(f"- {line}" for line in self.texts),
            "gopher.gopher_too_many_hashes": self._between(
                text, 8 if self.language == "zh" else 3, lambda: " #"
            ),
            "gopher.gopher_too_many_ellipsis": self._between(text, 4, lambda: "…"),
            "gopher.gopher_too_many_end_ellipsis": "\n".join(
                line.rstrip(".。 ") + ("…" if place % 2 else self.stop)
                for place, line in enumerate(self.texts)
            ),
            "gopher.gopher_below_alpha_threshold": self._between(
                text,
                3 if self.language == "zh" else 2,
                lambda: f" {self.rng.randrange(1000, 9999) if latin else self.rng.randrange(10)} ",
            ),
        }
        if latin:
            words = text.split(" ")
            found["gopher.gopher_above_avg_threshold"] = "\n".join(
                "-".join(line.split(" ")[:4])
                + " "
                + " ".join(
                    "-".join(line.split(" ")[start : start + 4])
                    for start in range(4, len(line.split(" ")), 4)
                )
                for line in lines
            )
            small = [word.lower() for word in dict.fromkeys(words) if len(word) <= 2 and word.isalpha()]
            other = [word.lower() for word in dict.fromkeys(words) if 3 <= len(word) <= 5 and word.isalpha()]
            share = 0.9 if self.language == "vi" else 0.66  # its words are shorter
            rows = [
                " ".join(self.rng.choice(small if self.rng.random() < share else other) for _ in range(25))
                + "."
                for _ in range(25)
            ]
            if self.language not in ("id", "ms"):  # identified as Tongan
                found["gopher.gopher_below_avg_threshold"] = "\n".join(rows)
        elif self.language == "zh":
            tokens = ["bcdfghjklmnpqrst" * 4, "1234567890" * 4] * 60
            found["gopher.gopher_above_avg_threshold"] = self._between(text, 17, lambda: f" {tokens.pop()} ")
        else:
            found["gopher.gopher_above_avg_threshold"] = self._between(
                text, 7, lambda: f" {self.rng.randrange(10**99, 10**100)} "
            )
            if self.language == "km":  # elsewhere so few words are too few letters, or repeat themselves
                found["gopher.gopher_short_doc"] = self.texts[0]
        return found

    def _between(self, text: str, every: int, what: Callable[[], str]) -> str:
        """The text with something after every so many words."""
        pieces: list[str] = []
        last = words = 0
        for unit in self.units(text):
            start = text.index(unit, last)
            pieces.append(text[last : start + len(unit)])
            last = start + len(unit)
            words += unit[0].isalnum()
            if unit[0].isalnum() and words % every == 0:
                pieces.append(what())
        return "".join(pieces) + text[last:]
