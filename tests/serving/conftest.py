"""A tiny model, its engine in this process, and a real server process; nothing changes them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served_folders import ROOT, RunningServer, environment, write_served_folders

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel

START_S = 90.0


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders of both families, with experts, and a Megatron checkpoint."""
    return write_served_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def one_process() -> Iterator[ParallelLayout]:
    """Megatron's process groups of this process alone."""
    layout = start_parallel(ParallelConfig(), seed=0)
    yield layout
    stop_parallel()


@pytest.fixture(scope="session")
def running_server(folders: dict[str, Path]) -> Iterator[RunningServer]:
    """`serve` on the checkpoint, small limits, a key."""
    key = folders["checkpoint"].parent / "key"
    key.write_text("secret\n")
    command = [
        sys.executable, "-m", "megatron_moe_grpo", "serve", folders["checkpoint"], "--port", "0",
        "--model-name", "tiny", "--api-key-file", key, "--max-positions", "256", "--max-sequences", "6",
    ]  # fmt: skip
    log = (folders["checkpoint"].parent / "server.log").open("wb")
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving tiny on http://127.0.0.1:"), line + Path(log.name).read_text()
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=line.split()[-1], headers=headers, timeout=60, trust_env=False) as client:
            yield RunningServer(client, process.pid)
        assert process.poll() is None, "the server died"
    finally:
        process.terminate()
        assert process.wait(START_S) in (0, -15)


@pytest.fixture
def server(running_server: RunningServer) -> httpx.Client:
    """Knows the address and the key."""
    return running_server.client
