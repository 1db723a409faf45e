"""datatrove's Gopher quality rules, with each different word looked at once."""

from __future__ import annotations

from collections import Counter

from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

_PUNCTUATION = "".join(sorted(PUNCTUATION_SET))
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


class FastQualityFilter(GopherQualityFilter):
    """datatrove's GopherQualityFilter with the same results, several times faster.

    datatrove looks at every character of every word in Python; here every different word is looked
    at once and counted as often as it occurs. Documents without a word that is not a symbol, for
    which datatrove divides by zero, are short documents.
    """

    name = "gopher"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document passes the rules, in datatrove's order."""
        text = doc.text
        words = split_into_words(text, self.language)
        counted = Counter(words)
        plain = [(len(word), count) for word, count in counted.items() if word.strip(_PUNCTUATION)]
        number = sum(count for _, count in plain)
        if number == 0 or (self.min_doc_words and number < self.min_doc_words):
            return False, "gopher_short_doc"
        if self.max_doc_words and number > self.max_doc_words:
            return False, "gopher_long_doc"
        mean = sum(length * count for length, count in plain) / number
        if self.min_avg_word_length and mean < self.min_avg_word_length:
            return False, "gopher_below_avg_threshold"
        if self.max_avg_word_length and mean > self.max_avg_word_length:
            return False, "gopher_above_avg_threshold"
        limit = self.max_symbol_word_ratio
        if limit and text.count("#") / len(words) > limit:
            return False, "gopher_too_many_hashes"
        if limit and sum(map(text.count, _ELLIPSES)) / len(words) > limit:
            return False, "gopher_too_many_ellipsis"
        lines = text.splitlines()
        limit = self.max_bullet_lines_ratio
        if limit and sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines) > limit:
            return False, "gopher_too_many_bullets"
        limit = self.max_ellipsis_lines_ratio
        if limit and sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines) > limit:
            return False, "gopher_too_many_end_ellipsis"
        limit = self.max_non_alpha_words_ratio
        if limit:
            alphabetic = sum(count for word, count in counted.items() if any(map(str.isalpha, word)))
            if alphabetic / len(words) < limit:
                return False, "gopher_below_alpha_threshold"
        if self.min_stop_words and len(self.stop_words & counted.keys()) < self.min_stop_words:
            return False, "gopher_enough_stop_words"
        return True
