"""Config files: found by name or path, overridden, refused when they do not build, and equal after a trip through JSON."""

from dataclasses import dataclass, field

import pytest

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from jaxseg.config import as_json, from_json, list_configs, load_config
from jaxseg.errors import ConfigError
from pretrain.config import PretrainConfig

KINDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "few_label": FewLabelConfig}


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    crop: tuple[int, int, int] = (1, 2, 3)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str | None = None
    groups: dict[str, list[int]] = field(default_factory=dict)


def test_a_config_survives_json():
    config = Outer(Inner(0.5, (4, 5, 6)), "x", {"core": [1, 3]})
    assert from_json(Outer, as_json(config)) == config


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ConfigError, match="learning_rate"):
        from_json(Outer, {"inner": {"learning_rate": 1}})


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_config_builds_and_survives_json(kind):
    shipped = list_configs(kind)
    assert shipped
    for name in shipped:
        config = load_config(name, kind, KINDS[kind])
        assert from_json(KINDS[kind], as_json(config)) == config


def test_an_override_on_the_command_line_wins(tmp_path):
    name = next(iter(list_configs("pretrain")))
    assert load_config(name, "pretrain", PretrainConfig, ["--optim.lr", "0.5"]).optim.lr == 0.5


def test_a_mistyped_override_ends_with_exit_code_2_and_a_hint(capsys):
    name = next(iter(list_configs("pretrain")))
    with pytest.raises(SystemExit) as exit_info:
        load_config(name, "pretrain", PretrainConfig, ["--optim.lrr", "0.5"])
    assert exit_info.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err


def test_a_mistyped_name_is_met_with_the_nearest_one():
    name = next(iter(list_configs("pretrain")))
    with pytest.raises(ConfigError, match=f"perhaps you meant '{name}'"):
        load_config(name + "x", "pretrain", PretrainConfig)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("config = 3", "found int"),
        ("x = 1", "NoneType"),
        ("config = (", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("config = 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit('no')", "SystemExit"),
        ("open('/absent/file')", "FileNotFoundError"),
    ],
)
def test_a_file_that_builds_no_config_is_refused(tmp_path, text, found):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=found):
        load_config(str(tmp_path / "bad.py"), "pretrain", PretrainConfig)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.py: no such config file"):
        load_config(str(tmp_path / "absent.py"), "pretrain", PretrainConfig)
