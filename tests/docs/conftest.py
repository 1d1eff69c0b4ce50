"""One plant for all that the docs say."""

from collections.abc import Iterator

import pytest

from tests.conftest import PrivateRedis
from tests.docs.plant import Plant, plant_of


@pytest.fixture(scope="package")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    server = PrivateRedis(tmp_path_factory.mktemp("redis"))
    try:
        with plant_of(tmp_path_factory.mktemp("plant"), server.url) as plant:
            yield plant
    finally:
        server.kill()
