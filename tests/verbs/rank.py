"""One rank of tests/verbs/test_ranks.py: command lines one after the other, in a process group that is there already, as in Ray Train.

python tests/forked.py 4 rank.py JOBS.json FOLDER
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch.distributed as dist

from plait import cli
from plait.train import log, sizing


def main(jobs: Path, folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    # A rank of another age and speed: what hangs on a clock must all the same be one decision.
    log.process_age = lambda: 1000.0 * rank
    sizing.product_rate = lambda: 1e9 * 100**rank
    for name, words in json.loads(jobs.read_text()).items():
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = cli.main([word.replace("RANK", str(rank)) for word in words])
        (folder / f"{name}.{rank}.json").write_text(json.dumps([code, out.getvalue(), err.getvalue()]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
