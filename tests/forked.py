"""Ranks as torchrun starts them, forked from one process that has imported torch already (which takes seconds).

python forked.py 4 SCRIPT ARGUMENTS; ends when all have, or with the first that fails.
"""

import os
import runpy
import signal
import socket
import sys
import traceback

import torch
import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp
import torch.distributed.tensor

import plait.verbs.training  # noqa: F401


def main(n: int, script: str) -> int:
    torch.set_num_threads(1)
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port = it.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = set()
    for rank in range(n):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            os._exit(run(script))
        ranks.add(pid)
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def run(script: str) -> int:
    code = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    if not hasattr(os, "fork"):
        sys.exit("no processes can be forked on this system")
    number, sys.argv = int(sys.argv[1]), sys.argv[2:]
    sys.exit(main(number, sys.argv[0]))
