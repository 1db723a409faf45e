"""docs/how-to-add.md, executed. The conventions of its blocks stand at the top of tests/support/pages.py."""

import pytest
from pages import CHECKOUT, PageError, run_section, sections

SECTIONS = sections(CHECKOUT / "docs" / "how-to-add.md")


@pytest.mark.slow
@pytest.mark.parametrize("heading", list(SECTIONS))
def test_how_to_add(heading, tmp_path):
    run_section(SECTIONS[heading], tmp_path)


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text.replace("'''", "```"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for blocks in sections(path).values():
        run_section(blocks, folder)


GOOD = """# Title
<!-- file: mine/here.py -->
'''python
VALUE = 41
'''
<!-- run -->

'''python
from mine import here
value = here.VALUE
'''
<!-- run -->
'''python
print(value + 1)
'''
<!-- output -->
'''text
42
'''
<!-- run: fails -->
'''bash
echo one; echo two; false
'''
<!-- output -->
'''
one
...
'''
<!-- not run: it is only shown -->
'''bash
rm -rf /nowhere
'''
'''text
no marker needed
'''
"""


def test_blocks_are_written_run_and_compared(tmp_path):
    page(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("42", "43", "page.md:17: the page says"),
        ("value + 1", "valu", "page.md:13: failed\nNameError"),
        ("; false", "", "page.md:21: did not fail"),
        ("<!-- not run: it is only shown -->", "", "a bash block must be"),
        ("not run: it is only shown", "not run", "not run without a reason"),
        ("no marker needed\n'''", "no marker needed", "not closed"),
        ("print(value + 1)", "import os; os._exit(3)", "the interpreter ended"),
    ],
)
def test_a_page_that_is_not_so_fails(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(PageError) as caught:
        page(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)


def test_the_command_is_the_one_under_test(tmp_path):
    page(
        tmp_path,
        "<!-- run -->\n'''python\nimport tsugiki; print(tsugiki.__file__)\n'''\n"
        f"<!-- output -->\n'''\n{CHECKOUT / 'tsugiki' / '__init__.py'}\n'''\n"
        "<!-- run -->\n'''bash\ntsugiki --help\n'''\n<!-- output -->\n'''\n...Usage: ...tsugiki...\n'''\n",
    )
