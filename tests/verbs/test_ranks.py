"""The command line on several ranks, as torchrun starts them: the run of one process, also where a rank is killed in the middle of it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import plait
from plait import cli
from plait.train.checkpoints import read_tensors
from plait.train.loop import Trainer

HERE = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
STEPS = 12
# Ranks add up the same numbers in another order, which in float32 changes a sum by some 1e-7 of itself. Adam divides by the size of the
# gradient: where that is small, the difference becomes some thousandth of a step, 1e-6 to 3e-5 in all steps together. A row left out or
# taken twice in a single step moves many weights by a good part of a step, which is 3e-3.
BOUND = 1e-4


def adam(rate: float = 0.003, steps: int = STEPS, evaluations: int = 4) -> list[object]:
    way = ["--optimizer", "adam", "--learning-rate", rate, "--warmup", 2, "--dropout", 0]
    return [*way, "--steps", steps, "--evaluations", evaluations]


def gpt2(tokens: int = 256) -> list[object]:
    return ["--preset", "gpt2-tiny", "--tokenizer", "characters", "--context", 32, "--batch-tokens", tokens]


TEXT = [*gpt2(), *adam(), "--average", 2]
PAIRS = ["--preset", "modern-tiny", "--batch-tokens", 512, *adam()]
# The learning rate is too high, so that not every evaluation is the best: the average must go out of the way all the same.
AVERAGED = [*gpt2(), *adam(0.05, 8, 8), "--ema", 0.5]
FEW = [*gpt2(64), *adam(steps=6)]  # batches of two rows
LABELS = ["--preset", "modern-encoder-tiny", "--batch-tokens", 256, *adam(steps=6, evaluations=2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with something to learn from: a text (as each rank's own file too) and labelled lines."""
    place, draw = tmp_path_factory.mktemp("ranks"), random.Random(1)
    text = " ".join(draw.choice("the a cat dog saw ran to of in house tree big red".split()) for _ in range(1200))
    for name, end in (("text.txt", ""), ("text-0.txt", ""), ("text-1.txt", " cat"), ("text-2.txt", ""), ("text-3.txt", "")):
        (place / name).write_text(text + end)
    words = {"good": "fine nice good well", "bad": "poor ugly bad ill"}
    lines = [(label, " ".join(draw.choice(words[label].split()) for _ in range(draw.randint(1, 6)))) for label in list(words) * 60]
    (place / "labels.csv").write_text("label,text\n" + "".join(f"{label},{line}\n" for label, line in lines))
    return place


def train(task: str, data: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in ("train", task, "--data", data, "--out", out, *more)]


def torchrun(n: int, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def on_ranks(n: int, place: Path, jobs: dict[str, list[str]]) -> dict[str, list[tuple[int, str, str]]]:
    """What each rank answered to each command line: exit code, stdout, stderr."""
    (place / f"jobs{n}.json").write_text(json.dumps(jobs))
    command = [sys.executable, HERE.parent / "forked.py", str(n), HERE / "rank.py", place / f"jobs{n}.json", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENV)
    assert done.returncode == 0, done.stderr[-6000:]
    return {name: [tuple(json.loads((place / f"{name}.{rank}.json").read_text())) for rank in range(n)] for name in jobs}


@pytest.fixture(scope="module")
def alone(place, pairs):
    """The runs of one process."""
    runs = {
        "text": train("language-model", place / "text.txt", place / "alone-text", *TEXT),
        "pairs": train("translation", pairs, place / "alone-pairs", *PAIRS),
        "averaged": train("language-model", place / "text.txt", place / "alone-averaged", *AVERAGED),
        "few": train("language-model", place / "text.txt", place / "alone-few", *FEW),
        "labels": train("classify", place / "labels.csv", place / "alone-labels", *LABELS),
    }
    for words in runs.values():
        assert cli.main([*words, "--quiet"]) == 0
    return {name: place / f"alone-{name}" for name in runs}


def wait_for(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until it is so, which must be before the process is over."""
    until = time.monotonic() + 120
    while not ready() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.fixture(scope="module")
def killed(place):
    """(the run of four ranks of which one was killed, what was said at its end)"""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc on this system")
    out = place / "killed"
    how = ["--parallel", "fsdp+tp", "--tensor", "2", "--save-seconds", "1e-6"]
    process = torchrun(4, "-m", "plait.cli", *train("language-model", place / "text.txt", out, *TEXT, *how))
    wait_for(lambda: any(int(found.name[5:]) > 4 for found in out.glob("checkpoints/step-*[0-9]")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (victim,) = [pid for pid in children if b"RANK=2" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(int(victim), signal.SIGKILL)
    return out, *process.communicate(timeout=60), process.returncode


@pytest.fixture(scope="module")
def four(place, pairs):
    cut = ["--parallel", "fsdp+tp", "--tensor", "2"]
    text = place / "text.txt"
    jobs = {
        "text-4": train("language-model", text, place / "text-4", *TEXT, *cut, "--accumulate", "2"),
        "pairs-4": train("translation", pairs, place / "pairs-4", *PAIRS, *cut),
        "few-4": train("language-model", text, place / "few-4", *FEW, "--parallel", "ddp"),
        "other-data": train("language-model", place / "text-RANK.txt", place / "other", *TEXT),
        "other-options": train("language-model", text, place / "other", *TEXT, "--seed", "RANK"),
    }
    return on_ranks(4, place, jobs)


@pytest.fixture(scope="module")
def two(place, pairs, killed, four):
    text = place / "text.txt"
    shutil.copytree(killed[0], place / "resumed-2")
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.step
        patch.setattr(Trainer, "step", lambda self, batch: (step(self, batch), setattr(self, "stop", self.state.step == 6)))
        assert cli.main([*train("language-model", text, place / "one-2", *TEXT), "--quiet"]) == 130
    jobs = {
        "text-2": train("language-model", text, place / "text-2", *TEXT),
        "pairs-2": train("translation", pairs, place / "pairs-2", *PAIRS, "--recompute"),
        "averaged-2": train("language-model", text, place / "averaged-2", *AVERAGED, "--parallel", "fsdp"),
        "labels-2": train("classify", place / "labels.csv", place / "labels-2", *LABELS, "--parallel", "tp"),
        "labels-fsdp": train("classify", place / "labels.csv", place / "labels-fsdp", *LABELS, "--parallel", "fsdp"),
        "resumed-2": ["train", "language-model", "--out", str(place / "resumed-2"), "--resume", "--save-seconds", "1e-6"],
        "one-2": ["train", "language-model", "--out", str(place / "one-2"), "--resume", "--parallel", "fsdp"],
        "again": ["train", "language-model", "--out", str(place / "resumed-2"), "--resume"],
        "minutes": train("translation", pairs, place / "minutes", "--minutes", "0.03", "--precision", "bfloat16", "--parallel", "tp"),
    }
    return on_ranks(2, place, jobs)


def figures(run: Path, *less: str) -> list[dict[str, float]]:
    away = ("seconds", "tokens_per_second", *less)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in away} for row in rows]


def far(one: Path, other: Path) -> float:
    """The largest difference of two runs' weights."""
    a, b = (read_tensors(run / "model.safetensors")[0] for run in (one, other))
    assert a.keys() == b.keys()
    # The gradient of a key's bias is zero but for rounding (softmax does not see it), of which Adam makes whole steps.
    return max(float((a[name] - b[name]).abs().max()) for name in a if not name.endswith("k_proj.bias"))


def assert_the_same(run: Path, reference: Path, *less: str) -> None:
    found, expected = figures(run, *less), figures(reference, *less)
    assert len(found) == len(expected) > 1
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=BOUND)
    assert far(run, reference) < BOUND


@pytest.mark.parametrize("task", ["text", "pairs"])
def test_four_ranks_are_one_process(place, alone, four, task):
    assert_the_same(place / f"{task}-4", alone[task])


@pytest.mark.parametrize("task", ["text", "pairs", "averaged"])
def test_two_ranks_are_one_process(place, alone, two, task):
    if task == "averaged":
        losses = [row["valid_loss"] for row in figures(alone[task])]
        assert losses != sorted(losses, reverse=True), "every evaluation was the best"
    assert_the_same(place / f"{task}-2", alone[task])


def test_ranks_without_rows_change_nothing(place, alone, four):
    assert_the_same(place / "few-4", alone["few"])


@pytest.mark.parametrize("run", ["labels-2", "labels-fsdp"])
def test_what_a_task_measures_is_measured_on_a_model_in_pieces(place, alone, two, run):
    assert {"accuracy", "macro_f1"} < figures(place / run)[-1].keys()
    assert_the_same(place / run, alone["labels"])


def test_only_the_first_rank_speaks(place, four, two):
    for name, said in (four | two).items():
        if name.startswith("other") or name == "again":
            continue
        assert [code for code, _, _ in said] == [0] * len(said), said
        (_, out, err), *others = said
        assert json.loads(out)["run"].startswith(str(place)) and "kept the weights of step" in err
        assert all(out + err == "" for _, out, err in others)


def test_the_model_answers_afterwards(place, four, two):
    for run, weights in (("text-4", "text-2"), ("resumed-2", "text-4")):
        ours, theirs = (plait.load(place / name) for name in (run, weights))
        assert ours.generate("the cat", max_new_tokens=5) == theirs.generate("the cat", max_new_tokens=5)


def test_ranks_with_other_data_or_options_are_refused_by_name(place, four):
    for _, out, err in four["other-data"]:
        assert out == "" and "the ranks do not train the same" in err and "Traceback" not in err
        assert "data: " in err and " on ranks 0, 2, 3; " in err and " on rank 1\n" in err
    for _, _, err in four["other-options"]:
        assert "--seed: 0 on rank 0; 1 on rank 1; 2 on rank 2; 3 on rank 3" in err
    assert {code for name in ("other-data", "other-options") for code, _, _ in four[name]} == {2}
    assert not (place / "other").exists()


def test_one_clock_for_all_ranks(place, two):
    """The ranks' own clocks are 1000 seconds apart, and so are the speeds that sizes are chosen by."""
    rows = figures(place / "minutes")
    assert json.loads(two["minutes"][0][1])["steps"] >= 1 and rows[-1]["valid_loss"] > 0


# ---- ranks that end ----


def test_a_killed_rank_ends_the_others_with_one_sentence(killed):
    out, _, err, code = killed
    assert code != 0
    assert err.count("one of 4 ranks has ended") == 1 and err.count("--resume") == 1
    assert "Traceback" not in err.split("one of 4 ranks")[0]  # what comes after is torchrun's own
    assert "rank      : 2" in err and "SIGKILL" in err
    assert not (out / "model.safetensors").exists()


def test_two_ranks_go_on_where_four_were_killed(place, alone, killed, two):
    step = int(max((killed[0] / "checkpoints").glob("step-*[0-9]")).name[5:])
    assert 4 < step < STEPS and f"going on at step {step}" in two["resumed-2"][0][2]
    assert_the_same(place / "resumed-2", alone["text"], "train_loss")
    assert "this run is finished" in two["again"][0][2]


def test_two_ranks_go_on_where_one_process_stopped(place, alone, two):
    assert "going on at step 6" in two["one-2"][0][2]
    assert_the_same(place / "one-2", alone["text"], "train_loss")
    assert not (place / "one-2" / "checkpoints" / "last.safetensors").exists(), "the older one of two checkpoints"


def test_one_process_goes_on_where_four_were_killed(alone, killed, tmp_path, plait):
    run = Path(shutil.copytree(killed[0], tmp_path / "run"))
    code, _, err = plait("train", "language-model", "--out", run, "--resume")
    assert code == 0 and "going on at step" in err
    assert_the_same(run, alone["text"], "train_loss")
    assert not list((run / "checkpoints").glob("step-*[0-9]")), "checkpoints of ranks that are older than the run's own"


def test_ctrl_c_saves_once_for_all_ranks(place, alone, plait):
    out = place / "stopped"
    process = torchrun(2, "-m", "plait.cli", *train("language-model", place / "text.txt", out, *TEXT))
    wait_for((out / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert process.returncode != 0 and said == ""
    assert err.count("everything is saved; go on with") == 1
    code, _, err = plait("train", "language-model", "--out", out, "--resume")
    assert code == 0 and "going on at step" in err
    assert_the_same(out, alone["text"], "train_loss")
