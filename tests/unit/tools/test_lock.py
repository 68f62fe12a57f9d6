"""requirements/*.txt agree with setup.cfg: `make lock` writes them."""

from __future__ import annotations

import configparser
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import EXTRAS

ROOT = Path(__file__).parents[3]
# Stands in no file, with what only its CUDA builds need.
TORCH = "torch"


def locked(name: str) -> dict[str, str]:
    """Versions by package."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    entries = re.findall(
        r"^([\w.-]+)==(\S+)( ;.*?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.MULTILINE)), "an entry without a hash"
    return {package: version for package, version, *_ in entries}


def required(name: str) -> list[Requirement]:
    """What setup.cfg and the build need directly."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    if extra := EXTRAS[name]:
        lines += setup["options.extras_require"][extra].split("\n")
    lines += tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("name", EXTRAS)
def test_the_locked_versions_are_those_that_setup_cfg_allows(name: str) -> None:
    versions = locked(name)
    wrong = {
        f"{requirement}: {versions.get(canonicalize_name(requirement.name))}"
        for requirement in required(name)
        if requirement.name != TORCH
        and not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    }
    assert not wrong, "run make lock"


def test_each_file_holds_the_one_before() -> None:
    files = [locked(name).items() for name in EXTRAS]
    assert all(small <= large for small, large in pairwise(files))


@pytest.mark.parametrize("name", EXTRAS)
def test_users_choose_where_packages_come_from_and_which_pytorch(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    assert "://" not in text and "--index" not in text and "--find" not in text
    assert not [package for package in locked(name) if re.match("torch$|nvidia-|cuda-", package)]


def test_the_build_needs_what_pyproject_says() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    lines = (ROOT / "requirements" / "build.in").read_text("utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == needed
