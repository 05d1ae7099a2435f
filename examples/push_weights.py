"""A trainer that pushes its weights to a running company, over and over, while it serves.

    export TROUPE_ADMIN_KEY=$(actorctl keys add --admin keys.toml trainer)  # clients: without --admin
    actorctl serve MODEL --keys keys.toml &
    python examples/push_weights.py MODEL --url http://127.0.0.1:8000 --updates 50

It is rank 0 of a group in which each executor is another rank, and sends every tensor to all of them at
once (Gloo; NCCL between GPUs). What it "learns" is noise. Needs torch and safetensors.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import socket
import urllib.error
import urllib.request

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d

GROUP = "trainer"
PATIENCE = datetime.timedelta(seconds=120)


def post(url: str, path: str, body: dict[str, object]) -> dict[str, object]:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {os.environ['TROUPE_ADMIN_KEY']}",
    }
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE.total_seconds()) as answer:
            document: dict[str, object] = json.load(answer)
            return document
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {json.load(error)['error']['message']}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"nobody answers at {url}: {error.reason}") from error


def make_group(url: str, executors: int, pool: concurrent.futures.Executor) -> dist.ProcessGroup:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = 1 + executors
    body = {"group_name": GROUP, "master_address": "127.0.0.1", "master_port": port, "backend": "gloo"}
    answer = pool.submit(
        post, url, "/init_weights_update_group", body | {"rank_offset": 1, "world_size": size}
    )
    store = PrefixStore(GROUP, TCPStore("127.0.0.1", port, size, True, PATIENCE, multi_tenant=True))
    group, _ = c10d._new_process_group_helper(size, 0, [], "gloo", store, group_name=GROUP, timeout=PATIENCE)
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    answer.result()
    return group


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--executors", type=int, default=1)
    parser.add_argument("--mode", default="keep")
    arguments = parser.parse_args()
    if not os.environ.get("TROUPE_ADMIN_KEY"):
        parser.error("TROUPE_ADMIN_KEY must hold an administrator's key: see this file's first lines")
    weights = load_file(arguments.model / "model.safetensors")
    post(arguments.url, "/get_weights_by_name", {"name": next(iter(weights))})  # may we, and does it fit?
    described = {
        "group_name": GROUP,
        "names": list(weights),
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
        "shapes": [list(tensor.shape) for tensor in weights.values()],
        "mode": arguments.mode,
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        group = make_group(arguments.url, arguments.executors, pool)
        for step in range(1, arguments.updates + 1):
            for tensor in weights.values():
                tensor += torch.randn_like(tensor) * tensor.float().std().to(tensor.dtype) / 50
            body = described | {"weight_version": f"step-{step}"}
            answer = pool.submit(post, arguments.url, "/update_weights_from_distributed", body)
            for tensor in weights.values():
                dist.broadcast(tensor, src=0, group=group)
            print(json.dumps(answer.result()), flush=True)
        post(arguments.url, "/destroy_weights_update_group", {"group_name": GROUP})


if __name__ == "__main__":
    main()
