"""Classification at equal time: plait train from scratch and from MiniLM, and Hugging Face's Trainer on the same weights, in turn.

`python -m plait.bench.label_quality FILE.csv MINUTES [NAMES ...]`: FILE has the columns text and label; a tenth of its texts, by their
hash, is scored and never learned from. Each contestant is one command and has MINUTES of wall time from its start.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.bench.measure import load_average

HELD, LENGTH = 0.1, 128  # of the texts; tokens of a text that are read


def parts_of(file: Path) -> tuple[list[list[str]], list[list[str]]]:
    """(rows to learn from, rows to score), the same texts on one side; each a text and its label."""
    csv.field_size_limit(2**24)
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [[row["text"], row["label"]] for row in csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")]
    sides: tuple[list, list] = [], []
    for row in rows:
        place = int.from_bytes(hashlib.sha256(row[0].encode()).digest()[:4], "big") / 2**32
        sides[place < HELD].append(row)
    return sides


def write(rows: Sequence[Sequence[str]], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def command(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return done.stdout


def ours(options: list[str]):
    def run(train: Path, test: Path, out: Path, minutes: float) -> dict[str, Any]:
        words = [
            "plait.cli",
            "train",
            "classify",
            "--data",
            str(train),
            "--out",
            str(out),
            "--minutes",
            str(minutes),
            "--context",
            str(LENGTH),
        ]
        trained = json.loads(command([*words, *options]))
        scored = json.loads(command(["plait.cli", "eval", str(out), "--data", str(test)]))
        return {"steps": trained["steps"], **scored}

    return run


def trainer(train: Path, test: Path, out: Path, minutes: float) -> dict[str, Any]:
    return json.loads(command(["plait.bench.label_quality", "--trainer", str(train), str(test), str(out), str(minutes)]).splitlines()[-1])


CONTESTANTS = {"plait from scratch": ours([]), "plait from minilm": ours(["--model", "minilm"]), "trainer from minilm": trainer}


def train_by_trainer(train: Path, test: Path, out: Path, minutes: float) -> dict[str, Any]:
    """`Trainer` as its documentation has it: AdamW 5e-5, linear decay, rows of 16 padded together; it stops when the time is over."""
    from plait.train.log import process_age

    started = time.perf_counter() - process_age()
    import torch
    import transformers

    from plait.hub.zoo import folder_of

    def rows(path: Path) -> list[list[str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]

    csv.field_size_limit(2**24)
    learn, score = rows(train), rows(test)
    labels = sorted({label for _, label in learn})
    folder = folder_of("minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(learn)

        def __getitem__(self, i: int) -> dict[str, Any]:
            text, label = learn[i]
            return {**tokenizer(text, truncation=True, max_length=LENGTH), "labels": labels.index(label)}

    limit = 60 * minutes

    class Clock(transformers.TrainerCallback):
        """Stops in time, and tells the schedule how many steps there will be once some have shown how long one takes."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if time.perf_counter() - started > limit:
                control.should_training_stop = True

    # The schedule has to be told a number of steps: as many as a trial of five says will fit.
    def run(steps: int) -> tuple[Any, float]:
        how = transformers.TrainingArguments(
            output_dir=str(out), use_cpu=True, max_steps=steps, per_device_train_batch_size=16, learning_rate=5e-5, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        made = transformers.Trainer(
            model=net, args=how, train_dataset=Rows(), data_collator=transformers.DataCollatorWithPadding(tokenizer), callbacks=[Clock()]
        )
        made.remove_callback(transformers.PrinterCallback)
        begin = time.perf_counter()
        made.train()
        return made, (time.perf_counter() - begin) / steps

    _, each = run(5)
    left = limit - (time.perf_counter() - started)
    made, _ = run(max(1, int(left / each)))
    net.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(score), 32):
            some = score[start : start + 32]
            batch = tokenizer([text for text, _ in some], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
            best = net(**batch).logits.argmax(-1).tolist()
            right += sum(labels[i] == label for i, (_, label) in zip(best, some, strict=True))
    return {"n": len(score), "metrics": {"accuracy": 100 * right / len(score)}, "steps": made.state.global_step}


def run(file: Path, minutes: float, names: Sequence[str] = ()) -> dict[str, Any]:
    learn, score = parts_of(file)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train, test = write(learn, folder / "train.csv"), write(score, folder / "test.csv")
        found = {"file": file.name, "rows": len(learn), "scored": len(score), "minutes": minutes, "load_before": load_average()}
        for name in names or CONTESTANTS:
            found[name] = CONTESTANTS[name](train, test, folder / name.replace(" ", "-"), minutes)
            print(json.dumps({name: found[name]}), file=sys.stderr)
    return {**found, "load_after": load_average()}


if __name__ == "__main__":
    if sys.argv[1] == "--trainer":
        print(json.dumps(train_by_trainer(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5]))))
    else:
        print(json.dumps(run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]), indent=2))
