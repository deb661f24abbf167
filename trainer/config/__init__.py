"""Every YAML's schema, documented where it is declared; checks.py holds what the types alone do not say.

Commands receive the typed object: `@hydra.main` around `train(config: TrainConfig)`.
"""

from trainer.config.composition import (
    CONFIG_DIR,
    from_yaml,
    register_configs,
    run_command,
    to_yaml,
    typed,
)
from trainer.config.evaluate import (
    CheckpointConfig,
    EmbeddingExportConfig,
    EvaluateConfig,
    EvaluationConfig,
    ExportConfig,
    ReplayConfig,
    RowsConfig,
)
from trainer.config.index import (
    IndexConfig,
    ItemIndexConfig,
    RecommendationConfig,
    RecommendConfig,
    ServedRunConfig,
)
from trainer.config.plan import ClusterConfig, PlanConfig
from trainer.config.prepare import (
    CiteULikeConfig,
    ColumnsConfig,
    FeatureConfig,
    ForeignConfig,
    GeneratedConfig,
    MovieLensConfig,
    PrepareConfig,
    PreparedConfig,
    SplitConfig,
    TabularConfig,
    UserItemListsConfig,
)
from trainer.config.query_tower import QueryTowerConfig, ServedTowerConfig
from trainer.config.train import (
    HistoryConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ShardingConfig,
    StartConfig,
    TowerConfig,
    TrainConfig,
    TrainDataConfig,
)

__all__ = [
    "CONFIG_DIR",
    "CheckpointConfig",
    "CiteULikeConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "EmbeddingExportConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FeatureConfig",
    "ForeignConfig",
    "GeneratedConfig",
    "HistoryConfig",
    "IndexConfig",
    "ItemIndexConfig",
    "LossConfig",
    "ModelConfig",
    "MovieLensConfig",
    "OptimizerConfig",
    "PlanConfig",
    "PrepareConfig",
    "PreparedConfig",
    "QueryTowerConfig",
    "RecommendConfig",
    "RecommendationConfig",
    "ReplayConfig",
    "RowsConfig",
    "RunConfig",
    "ServedRunConfig",
    "ServedTowerConfig",
    "ShardingConfig",
    "SplitConfig",
    "StartConfig",
    "TabularConfig",
    "TowerConfig",
    "TrainConfig",
    "TrainDataConfig",
    "UserItemListsConfig",
    "from_yaml",
    "register_configs",
    "run_command",
    "to_yaml",
    "typed",
]
