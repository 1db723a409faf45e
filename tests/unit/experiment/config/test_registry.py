"""Registries: entries are found by where their file lies, and whatever is wrong has a name."""

import subprocess
import sys
import textwrap

import pytest

from tsugiki.experiment.config.registry import Registry, load_object
from tsugiki.experiment.errors import ConfigError

PACKAGE = "doors_of_a_test"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package on the path whose modules the tests write; forgotten afterwards."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "door.py").write_text(
        f"from tsugiki.experiment.config.registry import Registry\nANIMALS = Registry('animal', ['{PACKAGE}.zoo'])\n"
    )
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))


def registry() -> Registry:
    return load_object(f"{PACKAGE}.door:ANIMALS")


def test_a_file_adds_a_thing(package):
    (package / "zoo" / "cats").mkdir()
    (package / "zoo" / "cats" / "__init__.py").touch()
    write(package / "zoo" / "dog.py", f"""
        from {PACKAGE}.door import ANIMALS
        @ANIMALS.register("dog", legs=4)
        def dog(): return "woof"
    """)  # fmt: skip
    write(package / "zoo" / "cats" / "lion.py", f"""
        from {PACKAGE}.door import ANIMALS
        ANIMALS.register("lion")("a lion")
    """)  # fmt: skip
    animals = registry()
    assert animals.names() == ["dog", "lion"]
    assert animals.get("dog")() == "woof" and animals.get("lion") == "a lion"
    assert animals.facts("dog") == {"legs": 4}
    assert animals.entry("lion").module == f"{PACKAGE}.zoo.cats.lion"
    assert "dog" in animals and "cow" not in animals


def test_modules_are_imported_at_the_first_question_and_once(package):
    write(package / "zoo" / "dog.py", f"""
        import pathlib
        from {PACKAGE}.door import ANIMALS
        with pathlib.Path(__file__).with_name("imports").open("a") as log: log.write("x")
        ANIMALS.register("dog")(1)
    """)  # fmt: skip
    animals = registry()
    log = package / "zoo" / "imports"
    assert not log.exists()
    assert animals.names() == ["dog"] == animals.names()
    assert animals.get("dog") == 1
    assert log.read_text() == "x"


def test_an_unknown_name_is_refused_with_the_known_ones(package):
    for name in ("dog", "donkey"):
        write(package / "zoo" / f"{name}.py", f"""
            from {PACKAGE}.door import ANIMALS
            ANIMALS.register("{name}")(1)
        """)  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        registry().get("donky", where="zoo.star (zoo.yaml:3)")
    assert str(caught.value).splitlines() == [
        "no such animal",
        "  where:    zoo.star (zoo.yaml:3)",
        "  got:      donky",
        "  expected: one of dog, donkey",
        "  fix:      did you mean 'donkey'?",
    ]


def test_nothing_registered_is_said(package):
    with pytest.raises(ConfigError, match="none is registered"):
        registry().get("dog")


def test_two_files_with_one_name_are_refused_naming_both(package):
    for file in ("one", "two"):
        write(package / "zoo" / f"{file}.py", f"""
            from {PACKAGE}.door import ANIMALS
            ANIMALS.register("dog")(1)
        """)  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        registry().names()
    assert f"{PACKAGE}.zoo.one" in str(caught.value) and f"{PACKAGE}.zoo.two" in str(caught.value)


def test_one_file_with_one_name_twice_is_refused(package):
    write(package / "zoo" / "one.py", f"""
        from {PACKAGE}.door import ANIMALS
        ANIMALS.register("dog")(1)
        ANIMALS.register("dog")(2)
    """)  # fmt: skip
    with pytest.raises(ConfigError, match="two entries for one animal"):
        registry().names()


def test_a_module_that_fails_keeps_failing_until_it_is_repaired(package):
    broken = package / "zoo" / "broken.py"
    write(broken, f"""
        from {PACKAGE}.door import ANIMALS
        ANIMALS.register("dog")(1)
        raise RuntimeError("half way")
    """)  # fmt: skip
    animals = registry()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half way"):
            animals.names()
    # Another length: Python tells a changed source by seconds and size.
    write(broken, f"from {PACKAGE}.door import ANIMALS\nANIMALS.register('dog')(2)\n")
    assert animals.get("dog") == 2


class Outer:
    """Something with a class inside."""

    class Inner:
        """The thing named."""


def test_an_object_by_address():
    import json

    assert load_object("json:loads") is json.loads
    assert load_object(f"{__name__}:Outer.Inner") is Outer.Inner


@pytest.mark.parametrize(
    "address", ["json", "json.loads", "json:", ":loads", "my-package:x", "a:b:c", "", "a b:c", ".a:b"]
)
def test_a_malformed_address(address):
    with pytest.raises(ConfigError, match=r"malformed address of a filter[\s\S]*package\.module:Name"):
        load_object(address, where="corpus.steps.0.use", kind="filter")


def test_a_module_that_is_not_there_keeps_the_cause():
    with pytest.raises(ConfigError) as caught:
        load_object("no_such_package_here.filters:Mine", where="corpus.steps.0.use")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    text = str(caught.value)
    assert "corpus.steps.0.use" in text and "no_such_package_here" in text and "PYTHONPATH" in text


def test_a_module_that_raises_keeps_the_cause(package):
    write(package / "bad.py", "1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError") as caught:
        load_object(f"{PACKAGE}.bad:Mine")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.fix is None


def test_a_name_that_is_not_in_the_module():
    with pytest.raises(ConfigError, match="did you mean 'loads'"):
        load_object("json:load_s")


def test_asking_for_names_imports_nothing_heavy():
    code = "import sys, tsugiki.experiment.config.registry; print(sorted({'torch', 'transformers', 'yaml', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
