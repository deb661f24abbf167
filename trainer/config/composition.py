"""From YAML to dataclasses and back: Hydra composes configs/*.yaml against them, so a misspelt key is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from trainer.config.evaluate import EvaluateConfig, ExportConfig, ReplayConfig
from trainer.config.help import documented_fields
from trainer.config.index import IndexConfig, RecommendConfig
from trainer.config.plan import PlanConfig
from trainer.config.prepare import (
    CiteULikeConfig,
    ForeignConfig,
    GeneratedConfig,
    MovieLensConfig,
    PrepareConfig,
    TabularConfig,
    UserItemListsConfig,
)
from trainer.config.query_tower import QueryTowerConfig
from trainer.config.refusals import check_values, explained
from trainer.config.train import TrainConfig
from trainer.errors import UserError, end_with

_PACKAGED = Path(__file__).parent.parent / "configs"
CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent.parent / "configs")
"""Inside the package when installed from a wheel, beside it in a checkout."""

Config = TypeVar(
    "Config", PrepareConfig, TrainConfig, EvaluateConfig, ExportConfig, QueryTowerConfig, IndexConfig, RecommendConfig,
    ReplayConfig, PlanConfig,
)  # fmt: skip


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's main; what Hydra finds wrong with files or overrides is one line, like other mistakes."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises rather than prints
    try:
        main()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        end_with(explained(error))


def register_configs() -> None:
    """Makes known to Hydra what configs/*.yaml name: the dataclasses, and the text of --help."""
    OmegaConf.register_new_resolver("documented_fields", documented_fields, replace=True)
    OmegaConf.register_new_resolver("choices", _choices, replace=True)
    store = ConfigStore.instance()
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(name="query_tower_schema", node=QueryTowerConfig)
    store.store(name="index_schema", node=IndexConfig)
    store.store(name="recommend_schema", node=RecommendConfig)
    store.store(name="replay_schema", node=ReplayConfig)
    store.store(name="plan_schema", node=PlanConfig)
    store.store(group="data", name="movielens_schema", node=MovieLensConfig)
    store.store(group="data", name="tabular_schema", node=TabularConfig)
    store.store(group="data", name="user_item_lists_schema", node=UserItemListsConfig)
    store.store(group="data", name="citeulike_schema", node=CiteULikeConfig)
    store.store(group="data", name="generated_schema", node=GeneratedConfig)
    store.store(group="data", name="foreign_schema", node=ForeignConfig)


def _choices(group: str) -> str:
    return ", ".join(sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml")))


def typed(config: DictConfig, kind: type[Config]) -> Config:
    """The composed config as its dataclass.

    Raises:
        UserError: a value that has no default was not given, a field is unknown, or a value is one that no field has.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(missing[0], "???", "a value", f"add {missing[0]}=... to the command line")
    _refuse_unknown_keys(config)
    check_values(config)
    result = OmegaConf.to_object(config)
    assert isinstance(result, kind)
    return result


def _refuse_unknown_keys(config: DictConfig) -> None:
    """An override with a + can add keys that no field stands for."""
    for node in (config, *(node for node in config.values() if isinstance(node, DictConfig))):
        kind = OmegaConf.get_type(node)
        try:
            OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.to_container(node))
        except ConfigKeyError as error:
            expected = f"a field of {getattr(kind, '__name__', kind)}"
            raise UserError(str(error.full_key), "given", expected, "correct it; --help lists all fields") from None


def to_yaml(config: TrainConfig) -> str:
    """The config as the text that `from_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path) -> TrainConfig:
    """The config of a run from its file, checked against this version's fields."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as error:
        expected = f"a config of this version's trainer.train ({error})"
        raise UserError("run.dir", path, expected, "use the version that wrote it, or another run") from None
    assert isinstance(config, TrainConfig)
    return config
