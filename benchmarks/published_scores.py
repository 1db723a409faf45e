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


COMPARISONS = {"llm_jp": llm_jp}


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


PROMPTS = {"llm_jp_prompts": llm_jp_prompts}


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
