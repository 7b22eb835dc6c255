"""TrainConfig: JSON round trip, and one line for every bad value."""

import dataclasses
import json
from pathlib import Path

import pytest

from scsco_fast.errors import ScscoError
from scsco_fast.train.config import ARCHITECTURE, TrainConfig, load_config
from scsco_fast.train.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = PRESETS[name]
    again = TrainConfig.from_json(config.to_json())
    assert again == config
    assert all(type(getattr(again, key)) is type(value) for key, value in vars(config).items())


def test_lists_and_whole_numbers_of_json_become_the_fields_types() -> None:
    config = TrainConfig.from_dict(
        {"betas": [0, 0.5], "vgg_layers": ["relu1_2", "relu2_2"], "lr": 1, "clip_norm": None}
    )
    assert config.betas == (0.0, 0.5)
    assert config.vgg_layers == ("relu1_2", "relu2_2")
    assert isinstance(config.lr, float)
    assert config.clip_norm is None


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("steps", 0, "at least 1"),
        ("steps", 1.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("batch_size", -2, "at least 1"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "a number"),
        ("lr", "fast", "a number"),
        ("betas", (0.9,), "two"),
        ("betas", (0.9, 1.0), "below 1"),
        ("ema_decay", 1.0, "below 1"),
        ("schedule", "cosin", "constant, cosine, linear-decay, step"),
        ("precision", "float8", "bfloat16"),
        ("backend", "cudnn", "eager"),
        ("in_channels", 5, "3, 4 or 7"),
        ("clip_norm", -1.0, "above 0"),
        ("vgg_layers", (), "at least one"),
        ("vgg_layers", "relu4_3", "a list of texts"),
        ("style_size", 0, "at least 1"),
        ("style_weight", -0.1, "at least 0"),
        ("output", "", "at least one"),
        ("layer_weights", (1.0, 2.0), "wanted 1"),
        ("negatives", 0, "at least 1"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(field: str, value: object, wanted: str) -> None:
    with pytest.raises(ScscoError, match=field) as error:
        TrainConfig(**{field: value})
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_iharmony4_needs_its_folder() -> None:
    with pytest.raises(ScscoError, match="root is None"):
        TrainConfig(dataset="iharmony4")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ScscoError, match="learning_rate: no such field"):
        TrainConfig.from_dict({"learning_rate": 1e-3})


def test_differences_name_both_values() -> None:
    assert TrainConfig(steps=5).differences(TrainConfig(steps=7, seed=1)) == {"steps": (5, 7), "seed": (0, 1)}


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_architecture_is_what_the_model_takes() -> None:
    assert tuple(TrainConfig(base_channels=4).architecture()) == ARCHITECTURE
    assert TrainConfig(base_channels=4).architecture()["base_channels"] == 4


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": {"steps": -1}}', '{"config": 3}'])
def test_load_config_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ScscoError, match=r"config\.json"):
        load_config(path)


def test_load_config_reads_what_a_run_wrote(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": PRESETS["demo"].to_dict(), "versions": {}}))
    assert load_config(path) == PRESETS["demo"]
    with pytest.raises(ScscoError, match="no such file"):
        load_config(tmp_path / "other.json")


def test_paper_preset_is_the_paper_where_it_is_known() -> None:
    paper = PRESETS["paper"]
    assert (paper.dataset, paper.size, paper.base_channels, paper.levels) == ("iharmony4", 256, 64, 8)
    assert (paper.norm, paper.head, paper.negatives, paper.style_weight) == ("bain", "direct", 5, 0.01)


def test_demo_preset_trains_bain_with_the_style_loss() -> None:
    demo = PRESETS["demo"]
    assert demo.norm.count("bain") >= 3
    assert demo.style_weight > 0
    assert demo.dataset == "synthetic"
