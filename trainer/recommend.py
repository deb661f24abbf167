"""Query tower and index -> a list of items for somebody.

python -m trainer.recommend run.dir=RUN recommend.user=17
echo '{"history": [50, 181], "hour": 20}' | python -m trainer.recommend run.dir=RUN recommend.query=-
"""

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from trainer.checks import check_recommend_config
from trainer.config import CONFIG_DIR, RecommendConfig, register_configs, run_command, typed
from trainer.errors import UserError, user_errors
from trainer.first_imports import first_imports

register_configs()

_SHOWN = 10


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="recommend")
def main(config: DictConfig) -> None:
    """Command line."""
    with user_errors():
        recommend(typed(config, RecommendConfig))


def recommend(config: RecommendConfig) -> None:
    """Prints the history of a query, as far as it is known, and the items that the index finds for it.

    Raises:
        UserError: query tower or index is missing, they are not of the same model, or the query does not fit.
    """
    check_recommend_config(config)
    asked = config.recommend
    said = {} if asked.query is None else _read_query(asked.query)
    with first_imports():  # after the config is known to be sound
        from trainer.data.titles import read_titles
        from trainer.retrieval.recommender import Recommender
        from trainer.runtime.served_queries import ServedQueries

    recommender = Recommender(config.run.dir)
    queries = ServedQueries(recommender.tower, config.run.dir, config.run.data_dir)
    query = queries.described(said) if asked.user is None else queries.of_user(asked.user, asked.split, said)
    left_out = {item for item in [*query.history, *query.seen] if asked.leave_out_seen and item is not None}
    [found] = recommender.of_inputs(query.inputs, asked.k, [left_out])
    shown = query.history[-_SHOWN:]
    titles = read_titles(queries.data_dir, [*(item for item in shown if item is not None), *(one.id for one in found)])
    told = "; ".join("an unknown item" if item is None else titles.get(item, str(item)) for item in shown)
    print(f"after {'... ' if len(query.history) > len(shown) else ''}{told}" if shown else "without a history")
    width = max((len(str(one.id)) for one in found), default=0)
    for rank, one in enumerate(found, 1):
        print(f"{rank:>4}  {one.id!s:<{width}}  {one.score:>8.4f}  {titles.get(one.id, '')}".rstrip())


def _read_query(source: str) -> dict[str, Any]:
    """The query of a file, or of standard input."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        query = json.loads(text, object_pairs_hook=_each_once)
    except (OSError, ValueError) as error:
        raise UserError("recommend.query", source, f'a query as JSON, such as {{"history": [50, 181]}} ({error})',
                        "name a file that has one, or - to give it on standard input") from None  # fmt: skip
    if not isinstance(query, dict):
        raise UserError("recommend.query", source, "one JSON object of features by name",
                        'write it as {"history": [50, 181], "hour": 20}')  # fmt: skip
    return query


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of whose equal names the decoder would silently keep the last."""
    query = dict(pairs)
    if len(query) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"{twice} is there twice")
    return query


if __name__ == "__main__":
    run_command(main)
