"""The shipped configurations fit and start on the GPUs that they name, by their shapes alone, and repeat nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from erniekit.config import Config, load_config
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.train.distributed import fit_parallel_dims
from erniekit.train.dry_run import dry_run_training
from erniekit.train.planner.job import Job
from erniekit.train.selection import ParameterSelection, select_parameters
from tools.docs.recipes import (
    CONFIGS,
    TARGET,
    Machines,
    Recipe,
    architecture_of,
    document,
    plan_memory,
    recipes,
)

pytestmark = pytest.mark.slow
NODE = range(1, 9)


def test_the_page_has_every_recipe() -> None:
    assert TARGET.read_text(encoding="utf-8") == document(), "run python tools/docs/recipes.py"
    assert {recipe.path for recipe in recipes()} == set(CONFIGS.glob("ERNIE-*/**/*.yaml"))


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_fits_and_starts_on_the_machines_that_it_names(recipe: Recipe) -> None:
    config, architecture = load_config(recipe.path), architecture_of(recipe)
    for machines in recipe.machines:
        fit_parallel_dims(config, architecture, machines.processes)
        found = plan_memory(recipe, machines)
        assert found.fits(machines.bytes), f"{machines}: {found.total_bytes / 2**30:.1f} GiB"


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_run_of_the_readme_fits_the_gpus_of_its_table(readme: str) -> None:
    """A row has GPUs, then sections to add to the run, or the file to extend."""
    rows = re.findall(
        r"^\| ([\d, 、或or]+) x (\d+) GB.*? \| (.*) \|$", (TARGET.parents[1] / readme).read_text(), re.M
    )
    folder = CONFIGS / "ERNIE-4.5-VL-28B-A3B" / "sft"
    by_file = {recipe.path: recipe for recipe in recipes()}
    assert len(rows) == 4
    for counts, size, change in rows:
        named = re.search(r"\w+\.yaml", change)
        recipe = by_file[folder / (named[0] if named else "run_sft_lora_8k.yaml")]
        sections = yaml.safe_load("{" + ", ".join(re.findall(r"`(\w+: \{.*?\})`", change)) + "}")
        overrides = [f"{name}.{key}={value}" for name in sections for key, value in sections[name].items()]
        for count in map(int, re.findall(r"\d+", counts)):
            machines = Machines(1, count, int(size))
            config = load_config(recipe.path, overrides)
            plan = Job(config, architecture_of(recipe), count, machines.bytes).plan.memory
            assert plan.fits(machines.bytes), f"{count} x {size} GB, {overrides}"


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_more_gpus_of_a_node_need_no_edit(recipe: Recipe) -> None:
    config, fewest = load_config(recipe.path), recipe.machines[0].processes
    parallel = config.parallel
    counts = [n for n in NODE if n >= fewest and not n % parallel.expert and not n % parallel.context]
    assert fewest in counts or fewest > max(NODE)
    for count in counts:
        fit_parallel_dims(config, architecture_of(recipe), count)


def test_the_dry_run_checks_all_recipes_without_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, ParameterSelection] = {}

    def select(config: Config, architecture: ErnieConfig, dtype: str) -> ParameterSelection:
        key = f"{architecture} {config.lora} {config.model.freeze}"
        if key not in found:
            found[key] = select_parameters(config, architecture, dtype)
        return found[key]

    monkeypatch.setattr("erniekit.train.dry_run.select_parameters", select)
    for recipe in recipes():
        dry_run_training(load_config(recipe.path), no_weights=True)
        printed = capsys.readouterr().out
        assert "model: the shape of the released ERNIE-4.5" in printed
        assert "The configuration is valid." in printed
    assert len(found) < 20


def test_the_dry_run_finds_mistakes_without_files(capsys: pytest.CaptureFixture[str]) -> None:
    file = CONFIGS / "ERNIE-4.5-0.3B" / "sft" / "run_sft_lora_8k.yaml"
    with pytest.raises(ConfigError, match=r"lora.targets: 'q_prj' matches no module .* mean 'q_proj'"):
        dry_run_training(load_config(file, ["lora.targets=[q_prj]"]), no_weights=True)
    with pytest.raises(ConfigError, match=r"the model has no experts"):
        dry_run_training(load_config(file, ["parallel.expert=2"]), no_weights=True)
    dry_run_training(load_config(file, ["parallel.context=2"]), no_weights=True, processes=3)
    assert "not checked: the number of devices, 3 here: " in capsys.readouterr().out


@pytest.mark.parametrize("base", ["sft", "lora", "dpo", "dpo_lora"])
@pytest.mark.parametrize("processes", [*NODE, 16])
def test_a_base_starts_on_any_number_of_gpus(tmp_path: Path, base: str, processes: int) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"extends: {CONFIGS / 'base' / base}.yaml\nmodel: {{path: m}}\ntrain: {{output_dir: o}}\n"
    )
    config = load_config(file)
    fit_parallel_dims(config, architecture_of(recipes()[0]), processes)
    assert config.num_rows(processes) >= 8


def settings(path: Path) -> dict[str, Any]:
    """The merged settings of a file, as they stand in it and in what it extends."""
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    return merged(inherited(path, own), own)


def inherited(path: Path, own: dict[str, Any]) -> dict[str, Any]:
    names = own.pop("extends", [])
    found: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        found = merged(found, settings(path.parent / name))
    return found


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_is_short_and_repeats_nothing(recipe: Recipe) -> None:
    own = yaml.safe_load(recipe.path.read_text(encoding="utf-8"))
    below = leaves(inherited(recipe.path, own))
    assert below and len(recipe.path.read_text(encoding="utf-8").splitlines()) < 40
    assert not [key for key, value in leaves(own).items() if below.get(key, None) == value]


def test_learning_rates_have_a_source() -> None:
    texts = [file.read_text(encoding="utf-8") for file in CONFIGS.rglob("*.yaml")]
    with_rates = [text for text in texts if "learning_rate" in text]
    assert len(with_rates) == 7 and all("ERNIEKit" in text for text in with_rates)
