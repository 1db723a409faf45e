"""Our scores of published benchmarks against their authors' own functions, on random and adversarial strings.

    python benchmarks/published_scores.py llm_jp --authors CHECKOUT [--write tests/fixtures/benchmarks]

A comparison takes the authors' functions out of their files as they stand (no other line of the file runs), gives both
sides the same 1,200 cases, and counts where they disagree; ``--write`` keeps cases and the authors' values as the table
that tests/unit/evaluation/test_evaluation_published.py checks. The checkouts, their commits and the libraries that the
authors' functions import are named beside each comparison; none of them is needed by Tsugiki.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Case = list[Any]
CASES = 1200
_JAPANESE = "東京都大阪市北区日本人一二三年月アイウカタナあいうのはがをです"
_OTHERS = "abcXYZ 019０１９ＡｂＣ.,、。・「」（）-—〜\u3000\t éß×°µ²½㎏①ﾊﾟｶﾞ゛👍🇯🇵\u200b\n가각ไทยà¤"


def authors_functions(path: Path, names: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    """Functions, classes and constants of a file by name, run with ``given`` in place of its imports."""
    wanted = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        own = [getattr(node, "name", None)]
        if isinstance(node, ast.Assign):
            own = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if set(own) & set(names):
            wanted.append(node)
    scope = dict(given)
    exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)  # noqa: S102 - what this is for
    return scope


def texts(generator: random.Random, number: int, alphabet: str = "") -> list[tuple[str, str]]:
    """Pairs of an answer given and the right one: unrelated, equal, or one a disturbed copy of the other."""

    def text() -> str:
        letters = alphabet or generator.choice([_JAPANESE, _JAPANESE + _OTHERS, _OTHERS])
        return "".join(generator.choices(letters, k=generator.choice([0, 1, 2, 3, 5, 8, 13, 21])))

    def disturbed(given: str) -> str:
        letters = list(given)
        for _ in range(generator.randrange(4)):
            place = generator.randrange(len(letters) + 1)
            match generator.randrange(5):
                case 0:
                    letters.insert(place, text()[:2])
                case 1:
                    del letters[place : place + 2]
                case 2:
                    letters = letters[place:] + letters[:place]
                case 3:
                    letters[place:] = [item.swapcase() for item in letters[place:]]
                case 4:
                    letters += letters[:place]
        return "".join(letters)

    pairs = []
    for _ in range(number):
        first = text()
        pairs.append((first, text() if generator.random() < 0.2 else disturbed(first)))
    return pairs


def llm_jp(checkout: Path) -> tuple[str, list[Case], Callable[[Case], list[float]]]:
    """The scores of swallow-llm/swallow-evaluation at 9460018; fuzzywuzzy 0.18 with Levenshtein."""
    import math
    from statistics import mean

    from fuzzywuzzy import fuzz

    from tsugiki.evaluation.benchmarks.scores.llm_jp import character_ratio, first_line_exact

    folder = checkout / "llm-jp-eval"
    scope = authors_functions(
        folder / "src/llm_jp_eval/utils.py", ["normalize"], {"unicodedata": __import__("unicodedata")}
    )
    scope |= {"fuzz": fuzz, "mean": mean, "math": math, "tqdm": lambda items, desc: items}
    scope |= {"Tuple": tuple, "SequentialChain": Any}  # of annotations
    scope["accuracy_score"] = lambda right, given: mean(
        float(a == b) for a, b in zip(right, given, strict=True)
    )
    theirs = authors_functions(folder / "scripts/evaluate_llm.py", ["get_evaluation_result"], scope)

    def value(given: str, right: str, metric: str) -> float:
        found, _ = theirs["get_evaluation_result"](
            lambda _: {"output": given}, [{"input": "", "output": right}], -1, "x", [metric]
        )
        return float(found[f"x_{metric}"])

    cases: list[Case] = [
        [given, right, value(given, right, "char_f1"), value(given, right, "exact_match")]
        for given, right in texts(random.Random(1), CASES)
    ]
    return (
        "github.com/swallow-llm/swallow-evaluation 9460018, fuzzywuzzy 0.18.0",
        cases,
        lambda case: [character_ratio(case[0], [case[1]]), first_line_exact(case[0], [case[1]])],
    )


def mgsm_ja(checkout: Path) -> tuple[str, list[Case], Callable[[Case], list[float]]]:
    """last_integer; Stability-AI/lm-evaluation-harness at 9b42d41."""
    import re

    from tsugiki.evaluation.benchmarks.tasks.mgsm_local import last_integer

    scope = {"re": re, "GradeSchoolMath8K": object, "INVALID_ANS": "[invalid]"}
    theirs = authors_functions(checkout / "lm_eval/tasks/ja/mgsm.py", ["MGSM", "ANS_RE"], scope)
    generator = random.Random(2)
    alphabet = "0123456789" * 2 + ".,-−- 、。答えは円個１２\n"
    cases: list[Case] = []
    for given, _ in texts(generator, CASES, alphabet):
        found = theirs["MGSM"]._extract_answer(None, given)
        right = (
            str(found)
            if isinstance(found, int) and generator.random() < 0.6
            else str(generator.randrange(-9, 99))
        )
        cases.append([given, right, float(found == int(right))])
    return (
        "github.com/Stability-AI/lm-evaluation-harness 9b42d41",
        cases,
        lambda case: [last_integer(case[0], [case[1]])],
    )


def rouge2_ja(checkout: Path) -> tuple[str, list[Case], Callable[[Case], list[Any]]]:
    """rouge2_mecab; Stability-AI/lm-evaluation-harness at 9b42d41, rouge-score, fugashi, unidic-lite, neologdn, emoji.

    A case ends with the words that the authors' tokenizer gave.
    """
    import re

    from rouge_score import rouge_scorer

    from tsugiki.evaluation.benchmarks.scores.rouge import rouge2_mecab, words

    scope = authors_functions(checkout / "lm_eval/tasks/ja/__init__.py", ["MecabTokenizer"], {"re": re})
    tokenizer = scope["MecabTokenizer"]()
    scorer = rouge_scorer.RougeScorer(["rouge2"], tokenizer=tokenizer)
    alphabet = _JAPANESE * 3 + _OTHERS + "✁✂❤️☀🏻ー〜～~ｱ"
    cases: list[Case] = []
    for given, right in texts(random.Random(3), CASES, alphabet):
        value = scorer.score(right, given)["rouge2"].fmeasure
        cases.append(
            [given, right, value, " ".join(tokenizer.tokenize(given)), " ".join(tokenizer.tokenize(right))]
        )
    return (
        "github.com/Stability-AI/lm-evaluation-harness 9b42d41, rouge-score 0.1.2, unidic-lite 1.0.8",
        cases,
        lambda case: [rouge2_mecab(case[0], [case[1]]), " ".join(words(case[0])), " ".join(words(case[1]))],
    )


def bleu_ja_en(checkout: Path) -> tuple[str, list[Case], Callable[[Case], list[Any]]]:
    """bleu_nagisa, and bleu of the same words; Stability-AI/lm-evaluation-harness at 9b42d41 with its sacrebleu 1.5.0.

    A case is 25 texts, 25 references, the score, and both lists cut into words.
    """
    from collections.abc import Iterable

    import nagisa
    import sacrebleu

    from tsugiki.evaluation.benchmarks.tasks.wmt20 import bleu_nagisa

    assert sacrebleu.__version__ == "1.5.0", sacrebleu.__version__
    names = ["bleu", "_sacreformat", "is_non_str_iterable"]
    metrics = authors_functions(
        checkout / "lm_eval/metrics.py", names, {"sacrebleu": sacrebleu, "Iterable": Iterable}
    )
    scope = {"nagisa": nagisa, "HAS_NAGISA": True, "List": list}
    cut = authors_functions(checkout / "lm_eval/tasks/translation.py", ["ja_split"], scope)["ja_split"]
    alphabet = _JAPANESE * 3 + "abc XYZ 019,.、。「」（）%&;-" + " "
    # An empty reference is an error of that sacrebleu.
    pairs = [
        (given.rstrip(), right.strip() or "答") for given, right in texts(random.Random(4), CASES, alphabet)
    ]
    cases: list[Case] = []
    for start in range(0, CASES, 25):
        given, right = (list(side) for side in zip(*pairs[start : start + 25], strict=True))
        split = [(cut([reference])[0], cut([text])) for text, reference in zip(given, right, strict=True)]
        references, texts_cut = [item[0] for item in split], [item[1][0] for item in split]
        cases.append([given, right, metrics["bleu"](split) / 100, texts_cut, references])
    return (
        "github.com/Stability-AI/lm-evaluation-harness 9b42d41, sacrebleu 1.5.0, nagisa 0.3.0",
        cases,
        lambda case: [bleu_nagisa(list(zip(case[1], case[0], strict=True))), *case[3:]],
    )


COMPARISONS = {"llm_jp": llm_jp, "mgsm_ja": mgsm_ja, "rouge2_ja": rouge2_ja, "bleu_ja_en": bleu_ja_en}


def llm_jp_prompts(checkout: Path) -> dict[str, dict[str, Any]]:
    """Files of one question and four made-up examples, and llm-jp-eval's prompt of them, by task of ours."""
    from types import SimpleNamespace

    from tsugiki.evaluation.benchmarks.task import own_tasks

    folder = checkout / "llm-jp-eval/src/llm_jp_eval"
    template = lambda input_variables, template: template  # noqa: E731 - stands for langchain's class
    theirs = authors_functions(
        folder / "utils.py",
        ["get_evaluation_prompt"],
        {"PromptTemplate": template, "BasePromptTemplate": str},
    )
    found = {}
    for task in ("jemhopqa", "niilc", "jsquad", "jcommonsenseqa"):
        source = (folder / f"datasets/{task}.py").read_text(encoding="utf-8")
        (name,) = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        base = type("Base", (), {"__init__": lambda self, _: setattr(self, "output_info", SimpleNamespace())})
        scope = authors_functions(
            folder / f"datasets/{task}.py",
            [name],
            {"BaseDatasetProcessor": base, "Sample": dict, "Path": Path},
        )
        processor = scope[name](Path())
        examples = own_tasks()[task].data.examples
        assert examples is not None
        questions = examples.chosen["question"]
        # The examples of our task are theirs, in their order; their texts are not copied.
        shown = [
            sample["input"].rpartition("質問：")[2].partition("\n")[0]
            for sample in processor.output_info.few_shots
        ]
        assert shown == questions, (task, shown)
        records = [
            _made_up(task, number, question) for number, question in enumerate([*questions, "どれ{か}？"])
        ]
        few_shots = [{"input": given, "output": right} for _, given, right in records[:-1]]
        prompt = theirs["get_evaluation_prompt"](processor.output_info.instruction, few_shots, 4)
        found[task] = {
            "files": {
                own_tasks()[task].data.file: _file(task, [records[-1][0]]),
                # The order of the file is not that of the prompt.
                examples.file: _file(task, [record for record, _, _ in records[:-1]][::-1]),
            },
            "fewshot": 4,
            "answer_tokens": processor.output_info.output_length,
            "prompt": prompt.replace("{input}", records[-1][1]),
        }
    return found


def _made_up(task: str, number: int, question: str) -> tuple[dict[str, Any], str, str]:
    """A record of a benchmark's file, and how llm-jp-eval writes its question and its answer."""
    if task == "jcommonsenseqa":
        choices = {f"choice{at}": f"選択{number}{at}" for at in range(5)}
        listed = ",".join(f"{at}.選択{number}{at}" for at in range(5))
        return (
            {"question": question, **choices, "label": number % 5},
            f"質問：{question}\n選択肢：{listed}",
            str(number % 5),
        )
    if task == "jsquad":
        record = {"context": f"題名 [SEP] 文脈{number}。", "question": question, "answer": f"答え{number}"}
        return record, f"文章：{record['context']}\n質問：{question}", record["answer"]
    if task == "niilc":
        answers = [f"答え{number}", "別の答え"][: 1 + number % 2]
        return {"question": question, "answers": answers}, f"質問：{question}", ",".join(answers)
    return {"question": question, "answer": f"答え{number}"}, f"質問：{question}", f"答え{number}"


def _file(task: str, records: list[dict[str, Any]]) -> str:
    """The records as the benchmark's authors write them."""
    if task == "jsquad":
        paragraphs = [
            {
                "context": record["context"],
                "qas": [{"id": "1", "question": record["question"], "answers": [{"text": record["answer"]}]}],
            }
            for record in records
        ]
        return json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)
    if task == "niilc":
        items = (
            f"<question><text>{record['question']}</text><answers>"
            + "".join(f"<answer>{answer}</answer>" for answer in record["answers"])
            + "</answers></question>"
            for record in records
        )
        return f"<?xml version='1.0' encoding=\"UTF-8\"?><questions>{''.join(items)}</questions>"
    return json.dumps(records, ensure_ascii=False)


def harness_ja_prompts(checkout: Path) -> dict[str, dict[str, Any]]:
    """As :func:`llm_jp_prompts`, one example each, of the Japanese harness."""
    import abc
    from types import SimpleNamespace

    everything = {
        "abc": abc,
        "abstractmethod": abc.abstractmethod,
        "Optional": SimpleNamespace,
        "Union": dict,
    }
    everything |= {"os": __import__("os"), "GradeSchoolMath8K": object, "rf": None, "np": None}
    context = next(
        item
        for node in ast.parse((checkout / "lm_eval/base.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Task"
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name == "fewshot_context"
    )
    context.decorator_list = []
    base: dict[str, Any] = {}
    exec(compile(ast.Module([context], []), "base.py", "exec"), base)  # noqa: S102 - what this is for

    def prompt(theirs: type, document: dict[str, Any], example: dict[str, Any], **attributes: Any) -> str:
        task = object.__new__(theirs)
        task.has_training_docs = lambda: True
        task.fewshot_examples = lambda k, rnd, stratified: [example]
        for name, value in attributes.items():
            setattr(task, name, value)
        made: str = base["fewshot_context"](task, document, 1, rnd=random.Random(1))
        return made

    mgsm = authors_functions(checkout / "lm_eval/tasks/ja/mgsm.py", ["MGSM"], everything)["MGSM"]
    xlsum = authors_functions(
        checkout / "lm_eval/tasks/ja/xlsum_ja.py", ["XLSumJa"], everything | {"Task": object}
    )
    names = ["GeneralTranslationTask", "code_to_language"]
    language = {"en": SimpleNamespace(name="English"), "ja": SimpleNamespace(name="Japanese")}
    countries = SimpleNamespace(languages=SimpleNamespace(get=lambda alpha_2: language[alpha_2]))
    given = everything | {"Task": object, "pycountry": countries, "List": list}
    wmt = authors_functions(checkout / "lm_eval/tasks/translation.py", names, given)["GeneralTranslationTask"]

    worked = {
        "question": "問題：りんごが2個、また1個。いくつ？",
        "answer": "ステップごとの答え：2 + 1 = 3。答えは3です。",
    }
    asked = {"question": "みかんが5個。いくつ？", "answer": "5"}
    exemplars = {"ja": {"1": {"q": worked["question"], "a": worked["answer"]}}}
    articles = [{"text": f'記事{at}。\n二行目、"引用"。', "summary": f"要約{at}"} for at in (1, 2)]
    quoted = [[item[key].replace('"', '""') for key in ("text", "summary")] for item in articles]
    table = [f'text,summary\n"{text}","{summary}"\n' for text, summary in quoted]
    found = {
        "mgsm_local_ja": {
            "files": {
                "mgsm_ja.tsv": f"{asked['question']}\t{asked['answer']}\n",
                "exemplars.py": f"X = [1]\nMGSM_EXEMPLARS = {exemplars!r}\n",
            },
            "prompt": prompt(mgsm, asked, worked),
        },
        "xlsum_ja": {
            "files": {"xlsum_ja-test.csv": table[0], "xlsum_ja-train.csv": table[1]},
            "prompt": prompt(xlsum["XLSumJa"], *articles),
        },
    }
    for pair, (source, target) in {"en-ja": ("A cat.", "猫。"), "ja-en": ("猫。", "A cat.")}.items():
        documents = [{"src": f"{source}{at}", "ref": f"{target}{at}"} for at in (1, 2)]
        found[f"wmt20_{pair.replace('-', '_')}"] = {
            "files": {
                f"wmt20.{pair}.src": "".join(f"{item['src']}\n" for item in documents),
                f"wmt20.{pair}.ref": "".join(f"{item['ref']} \n" for item in documents),
            },
            "prompt": prompt(wmt, *documents, sacrebleu_language_pair=pair),
        }
    return {task: {"fewshot": 1, "answer_tokens": 256, **item} for task, item in found.items()}


PROMPTS = {"llm_jp_prompts": llm_jp_prompts, "harness_ja_prompts": harness_ja_prompts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", choices=[*COMPARISONS, *PROMPTS])
    parser.add_argument("--authors", type=Path, required=True, help="checkout of the authors' repository")
    parser.add_argument("--write", type=Path, help="folder for the table of cases and values")
    arguments = parser.parse_args()
    if arguments.comparison in PROMPTS:
        prompts = PROMPTS[arguments.comparison](arguments.authors)
        print(json.dumps(prompts, ensure_ascii=False, indent=1))
        if arguments.write is not None:
            text = json.dumps(prompts, ensure_ascii=False, indent=1) + "\n"
            (arguments.write / f"{arguments.comparison}.json").write_text(text, encoding="utf-8")
        return
    source, cases, ours = COMPARISONS[arguments.comparison](arguments.authors)
    different = [case for case in cases if ours(case) != case[2:]]
    for case in different[:5]:
        print("differs:", case, ours(case))
    print(f"{arguments.comparison}: {len(cases)} cases, {len(different)} differ; authors: {source}")
    if arguments.write is not None:
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        text = f'{{"source": {json.dumps(source)}, "cases": [\n{lines}\n]}}\n'
        (arguments.write / f"{arguments.comparison}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
