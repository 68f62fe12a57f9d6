"""The documentation as a site, and what its pages repeat from the code and from each other."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from erniekit.cli.main import COMMANDS, GROUPS
from tools.docs.site import without_outer_links

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed")
def test_the_site_has_every_page_and_fetches_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    assert config.strict
    with caplog.at_level("WARNING", logger="mkdocs"):
        build(config)
    assert not caplog.records, caplog.text
    pages = {str(file.relative_to(DOCS).with_suffix(".html")) for file in DOCS.rglob("*.md")}
    assert pages <= {str(file.relative_to(tmp_path / "site")) for file in tmp_path.rglob("*.html")}
    for page in pages:
        html = (tmp_path / "site" / page).read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\"> ]+)", html)
        fetched += re.findall(r"<link[^>]* href=\"?([^\"> ]+)", html)
        assert fetched and not [address for address in fetched if "//" in address], page


def test_every_page_is_in_the_navigation() -> None:
    nav = text_of("mkdocs.yml").split("\nnav:\n")[1]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.M)) == sorted(
        str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")
    )


def test_links_out_of_the_site_become_paths() -> None:
    page = "[a](data.md#x) [README](../README.md) [how](../tools/x.md#y) ![p](../p.png) [b](../docs/b.md)"
    assert without_outer_links(page, "index.md") == (
        "[a](data.md#x) README (`README.md`) how (`tools/x.md`) ![p](../p.png) [b](../docs/b.md)"
    )
    assert without_outer_links("[`z.sh`](../../examples/z.sh) [i](../index.md)", "tutorials/a.md") == (
        "`examples/z.sh` [i](../index.md)"
    )


def test_the_page_of_keys_has_each_table_once() -> None:
    """data.train and data.eval are lists of the same section, and lists are no sections that may be null."""
    tables = re.findall(r"^\| key \|.*?(?=\n\n|\Z)", text_of("docs/configuration.md"), re.M | re.S)
    titles = re.findall(r"^(?:## |Keys of |Each item of )(\S+)", text_of("docs/configuration.md"), re.M)
    assert len(tables) == len(set(tables)) > 10
    assert len(titles) == len(set(titles)) == len(tables) - 1


def test_every_command_is_on_the_page_of_commands() -> None:
    named = set(re.findall(r"^\| `erniekit ((?:(?:data|config) )?[a-z]+)", text_of("docs/commands.md"), re.M))
    assert named == {*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group].commands)}


def messages_of_the_code() -> set[str]:
    """All texts of the sources, with … in the place of values."""
    found = set()
    for file in (ROOT / "erniekit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    messages = messages_of_the_code()
    quoted = re.findall(r"^### `(.*)`$", text_of("docs/troubleshooting.md"), re.M)
    assert len(quoted) > 30
    assert [quote for quote in quoted if not any(quote in message for message in messages)] == []


@pytest.mark.parametrize(
    ("english", "chinese"), [("README.md", "README_zh.md"), ("docs/quickstart.md", "docs/zh/quickstart.md")]
)
def test_the_chinese_page_has_the_same_blocks(english: str, chinese: str) -> None:
    """Comments in configurations are translated."""

    def blocks(path: str) -> list[str]:
        found = re.findall(r"```(?:bash|sh|yaml|text)\n.*?```", text_of(path), re.S)
        return [re.sub(r" +#.*", "", block) for block in found]

    assert blocks(chinese) == blocks(english)
    assert re.findall(r"\]\(([^)]*\.yaml|http[^)]*)\)", text_of(chinese)) == re.findall(
        r"\]\(([^)]*\.yaml|http[^)]*)\)", text_of(english)
    )


COLUMNS = (
    "sft/run_sft_lora_8k.yaml",
    "sft/run_sft_qlora_8k.yaml",
    "sft/run_sft_8k.yaml",
    "dpo/run_dpo_lora_8k.yaml",
    "dpo/run_dpo_8k.yaml",
)


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_table_of_gpus_is_that_of_the_recipes(readme: str) -> None:
    """docs/recipes.md is written from the examples and their memory plans."""
    recipe = r"^\| \[.*\]\(\.\./examples/configs/(\S+)\) \| .* \| ([^|]*) \| ([^|]*) \|$"
    recipes = {
        path: gpus + memory for path, gpus, memory in re.findall(recipe, text_of("docs/recipes.md"), re.M)
    }
    rows = re.findall(r"^\| (ERNIE-4.5-\S+) \|(.*)\|$", text_of(readme), re.M)
    assert [name for name, _ in rows] == list(dict.fromkeys(path.split("/")[0] for path in recipes))
    for name, cells in rows:
        for cell, file in zip(cells.split("|"), COLUMNS, strict=True):
            stated = re.findall(r"\d+", recipes.get(f"{name}/{file}", ""))
            assert re.findall(r"\d+", cell) == stated, f"{readme}: {name}, {file}"


def logical_lines(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile, without comments, continuation lines joined."""
    joined = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.M).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_what_a_dockerfile_uses_exists(name: str) -> None:
    lines = logical_lines(text_of(f"docker/{name}"))
    instructions = [line.split()[0] for line in lines]
    assert instructions[0] in ("ARG", "FROM") and set(instructions) <= {
        "ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "CMD",
    }  # fmt: skip
    ignored = text_of(".dockerignore").split()
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists() and source.rstrip("/") not in ignored, source
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", text_of("Makefile"), re.M))
    known = {target for group in targets for target in group.split()}
    for target in re.findall(r"\bmake ([\w-]+)", "\n".join(lines)):
        assert target in known, target
    # What make reads to install is copied before it runs.
    (needed,) = re.findall(r"^\$\(CORE_STAMP\): (.*)$", text_of("Makefile"), re.M)
    early = " ".join(lines[: lines.index("RUN make install")]).split()
    for file in needed.split():
        assert file.startswith("$") or file in early or file.split("/")[0] in early, file
    (version,) = set(re.findall(r"paddlepaddle(?:-gpu)?==([\d.]+)", text_of("setup.cfg")))
    for pinned in re.findall(r"paddlepaddle(?:-gpu)?==([\d.]+)", "\n".join(lines)):
        assert pinned == version
    for line in lines:
        if line.startswith("RUN "):
            shlex.split(line.removeprefix("RUN "))


def test_docker_commands_of_the_documents_name_these_files() -> None:
    named = re.findall(r"docker build -f (\S+)", text_of("docs/install.md"))
    assert sorted(named) == sorted(f"docker/{file.name}" for file in (ROOT / "docker").glob("Dockerfile.*"))
