"""An S3 of this machine's own: moto's server, spoken to by s3fs as by any other S3."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "mhpc",
    "AWS_SECRET_ACCESS_KEY": "a-key-that-no-log-may-show",
    "AWS_DEFAULT_REGION": "us-east-1",
}
TIMES = '{"connect_timeout": 1, "read_timeout": 2, "retries": {"max_attempts": 1}}'


@contextmanager
def serving() -> Iterator[str]:
    """Its address; this process, and those that it starts, speak to it as `s3://`."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install -e .[dev]")
    server = pytest.importorskip("moto.server", reason="no moto: pip install -e .[dev]").ThreadedMotoServer(
        "127.0.0.1", 0
    )
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    told = {**KEYS, "FSSPEC_S3_ENDPOINT_URL": address, "FSSPEC_S3_CONFIG_KWARGS": TIMES}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    configured = dict(fsspec.config.conf)
    fsspec.config.set_conf_env(fsspec.config.conf)
    try:
        yield address
    finally:
        fsspec.config.conf.clear()
        fsspec.config.conf.update(configured)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.stop()


def new_bucket() -> str:
    """The address of a prefix in a bucket of its own."""
    fs = fsspec.filesystem("s3")
    name = f"plant-{uuid.uuid4().hex[:8]}"
    fs.mkdir(name)
    return f"s3://{name}/models"
