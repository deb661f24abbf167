import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.prepared import write_prepared
from tests.ranks import RankPool

# a busy machine may take long over any example; those that write files share the folder of their test, and write anew
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What has been imported stays, so the collector need not go through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Process groups of 1 to 3 ranks."""
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared folder with every kind of feature."""
    return write_prepared(tmp_path_factory.mktemp("prepared"))
