"""Debian packages as a source, with stand-ins for apt-get and dpkg-deb."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugiki.data.inputs import debian
from tsugiki.experiment.errors import ConfigError, EnvironmentError_


def tools(folder: Path, apt: str) -> None:
    folder.mkdir()
    for name, script in (
        ("apt-get", apt),
        ("dpkg-deb", 'mkdir -p "$3/usr/share" && echo text > "$3/usr/share/page.html"'),
    ):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def test_package_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path / "bin", f"echo run >> {tmp_path}/runs; touch pack_1.0_all.deb")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    folder = debian.unpacked("pack")
    assert (folder / "usr/share/page.html").read_text() == "text\n"
    assert debian.unpacked("pack") == folder
    assert (tmp_path / "runs").read_text() == "run\n"
    assert [item.name for item in folder.parent.iterdir()] == ["pack"]  # no scratch left


def test_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path / "bin", 'echo "E: Connection refused" >&2; exit 100')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentError_) as caught:
        debian.unpacked("pack")
    assert "E: Connection refused" in str(caught.value)
    assert "use your own text" in str(caught.value)
    assert list((tmp_path / "cache/debian").iterdir()) == []


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentError_) as caught:
        debian.unpacked("libreoffice-help-ja")
    assert "no apt-get" in str(caught.value) and "format: text" in str(caught.value)


@pytest.mark.parametrize("path", ["debian:pack", "debian:/usr/*", "debian:Bad Name/x"])
def test_malformed_path(path: str) -> None:
    with pytest.raises(ConfigError, match="malformed path"):
        debian.split_path(path)
