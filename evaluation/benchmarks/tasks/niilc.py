"""NIILC's XML."""

from __future__ import annotations

from xml.etree import ElementTree

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record


@FORMATS.register("niilc")
def read_niilc(text: str) -> list[Record]:
    """Questions with ``answers``, a list, and ``answer``, all joined by commas; without those answered by ``-``.

    Entities are not expanded beyond XML's own five: a declaration of others is an error.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a document type declaration, which NIILC's files do not have")
    try:
        questions = ElementTree.fromstring(text.encode()).findall("question")
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    records = []
    for question in questions:
        found = ((answer.text or "").strip() for answer in question.iterfind("answers/answer"))
        answers = [answer for answer in found if answer]
        if answers and answers != ["-"]:
            asked = (question.findtext("text") or "").strip()
            records.append({"question": asked, "answers": answers, "answer": ",".join(answers)})
    return records
