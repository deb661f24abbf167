"""What a training takes of a cluster that is only described, without any GPU.

python -m trainer.plan data.dir=DATA plan.nodes=8 +plan.rows.user_id=1000000000
"""

from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from trainer.checks import check_plan_config
from trainer.config import CONFIG_DIR, PlanConfig, register_configs, run_command, typed
from trainer.errors import user_errors
from trainer.first_imports import first_imports

if TYPE_CHECKING:
    from trainer.runtime.planning import ClusterPlan

register_configs()


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="plan")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        plan(typed(config, PlanConfig))


def plan(config: PlanConfig) -> "ClusterPlan":
    """Plans and tells.

    Raises:
        UserError: it does not fit; the message says what would.
    """
    check_plan_config(config)
    with first_imports():  # after the config is known to be sound
        from trainer.runtime.plan_text import told
        from trainer.runtime.planning import Planning
        from trainer.runtime.quiet import quieten_libraries

    quieten_libraries()
    found = Planning(config).fitting(config)
    print(told(found))
    return found


if __name__ == "__main__":
    run_command(main)
