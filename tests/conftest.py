"""What several test folders share and is dear to make: the real models, pulled and loaded once a
session. And the order of files: the slow ones first.
"""

import os
from pathlib import Path

import pytest

# Triton's kernels run in its interpreter here: their arithmetic, without a GPU. Read once, when
# anything first imports Triton.
os.environ["TRITON_INTERPRET"] = "1"
# One thread of torch's, here and in processes that tests start. More of them spin while they wait
# for each other: two workers on two cores took five times the processor time for small networks.
os.environ["OMP_NUM_THREADS"] = "1"

from quietchoir.core import paths
from quietchoir.core.models import weights
from quietchoir.core.models.hub import catalog
from quietchoir.core.models.weights import Weights

# Files that take a few seconds; see `make check`.
FAST = Path(__file__).with_name("fast.txt").read_text("utf-8").splitlines()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put slow files first: two workers end together when what comes last is short."""
    fast = {config.rootpath / name for name in FAST}
    items.sort(key=lambda item: item.path in fast)


@pytest.fixture(scope="session")
def quietchoir_home() -> Path:
    """Home whose model cache all tests share: `QUIETCHOIR_HOME` if set, else the platform's
    default. Do not write in it.
    """
    return paths.home()


@pytest.fixture(scope="session")
def model_path(quietchoir_home: Path) -> Path:
    """The default model's file, pulled if it is not here."""
    return catalog.pull("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def embedder_path(quietchoir_home: Path) -> Path:
    """The embedding model's folder, pulled if it is not here."""
    return catalog.pull("minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2(model_path: Path) -> Weights:
    """The default model, loaded; shared, so never changed."""
    return weights.load(model_path)
