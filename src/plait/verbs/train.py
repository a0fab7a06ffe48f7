"""plait train: from files to a trained model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from plait.errors import InputError
from plait.verbs import positional
from plait.verbs.numbers import number_faults

BUDGET = ("minutes", "steps", "epochs")
POSITIVE = (*BUDGET, *"learning_rate warmup batch_tokens vocab_size accumulate average evaluations patience save_seconds threads".split())
POSITIVE += ("tensor", "teacher_temperature", "size", "rank", "alpha", "length", "width")
LISTS = ("data", "valid", "columns", "targets", "teacher_match")
# Task -> its module among plait.verbs.lessons.
LESSONS = {"translation": "translation", "language-model": "language", "masked-lm": "masked"}
LESSONS |= {name: name for name in ("classify", "tag", "answer", "embed", "detect")}
TUNING = ("rank", "alpha", "length", "width", "targets", "bits")  # options of --method
# These may differ between a run and its resumption.
FREE = {"out", "resume", "workers", "check", "threads", "quiet", "save_seconds", "parallel", "tensor", "tensorboard", "wandb"}


@dataclass
class Train:
    """Train a model on your own data, from files to a run folder."""

    task: Annotated[
        Literal["translation", "language-model", "masked-lm", "classify", "tag", "answer", "embed", "detect"], positional, "what is learned"
    ]
    out: Annotated[Path, "RUN", "the run folder to make"]
    data: Annotated[
        list[str],
        "FILES",
        "text, CSV, TSV, JSON lines or parquet, each also .gz; pairs also .po and .mo; pictures; or a built-in set's name",
    ] = field(default_factory=list)
    valid: Annotated[list[str], "FILES", "for validation; default: some of the data is held out"] = field(default_factory=list)
    columns: Annotated[list[str], "NAME=COLUMN", "which column holds what, such as text=Body label=Topic; or numbers, from 1"] = field(
        default_factory=list
    )
    documents: Annotated[Literal["file", "line"], "of a text file for a language model: all of it is one document, or each line"] = "file"
    objective: Annotated[
        Literal["mask", "span"], "of a masked language model: tell hidden tokens (BERT), or write hidden spans (T5, an encoder-decoder)"
    ] = "mask"
    whole_words: Annotated[bool, "hide all tokens of a word together, for a masked language model"] = False
    minutes: Annotated[float | None, "wall time from the start of the process"] = None
    steps: Annotated[int | None, "optimizer steps"] = None
    epochs: Annotated[float | None, "passes over the data"] = None
    model: Annotated[str | None, "MODEL", "start from these weights: a run, a released checkpoint's folder, a name such as minilm"] = None
    teacher: Annotated[str | None, "MODEL", "learn from this model too; without --model and --tokenizer, with its tokenizer"] = None
    teacher_match: Annotated[
        list[Literal["scores", "hidden", "attention"]],
        "what of the teacher is learned: its scores (the default), what leaves its blocks, where its attention looks; several add up",
    ] = field(default_factory=list)
    teacher_weight: Annotated[float | None, "share of the loss that the teacher decides (default 0.5)"] = None
    teacher_temperature: Annotated[float | None, "softens the scores of both (default 2)"] = None
    method: Annotated[str | None, "of tuning --model by a small part: lora, prefix, houlsby ... (`plait tune --help` says which)"] = None
    rank: Annotated[int | None, "of lora, rslora, dora: columns of the two matrices whose product is added (default 8)"] = None
    alpha: Annotated[float | None, "of lora, rslora, dora: that product's scale, divided by the rank (default 16)"] = None
    length: Annotated[int | None, "of prefix and prompt: learned entries before the model's own"] = None
    width: Annotated[int | None, "of houlsby and pfeiffer: hidden values of an adapter"] = None
    targets: Annotated[list[str], "PATTERNS", "of --method: names of the parts it changes, such as '*.q_proj' 'decoder.*'"] = field(
        default_factory=list
    )
    bits: Annotated[int | None, "with --method: hold the frozen weights in 8 or 4 bits"] = None
    preset: Annotated[str | None, "MODEL-SIZE", "vaswani-base, modern-small ...; default: fitted to data and budget"] = None
    tokenizer: Annotated[str | None, "KIND", "bpe, unigram, words, characters or a tokenizer.json; default: seen from the data"] = None
    target_tokenizer: Annotated[str | None, "KIND", "for the answers, where it is to be another"] = None
    vocab_size: Annotated[int | None, "tokens of a bpe or unigram tokenizer; default: fitted to the data"] = None
    neighbours: Annotated[bool, "give the model the target of the most similar training source beside each source; kept in the run"] = False
    size: Annotated[int | None, "PIXELS", "of pictures: the side that the model is given, of a detector the shorter side"] = None
    augment: Annotated[str | None, "of pictures: what is changed by chance, such as none, digits, photographs, strong, boxes"] = None
    context: Annotated[int | None, "longest sequence in tokens; longer ones are cut, and counted (default 256)"] = None
    dropout: Annotated[float | None, "default: by the expected number of epochs"] = None
    smoothing: Annotated[float | None, "label smoothing; default: by the expected number of epochs"] = None
    optimizer: Annotated[Literal["muon", "adam"] | None, "default: muon for modern models, the paper's adam for vaswani"] = None
    learning_rate: Annotated[float | None, "peak learning rate; default: the recipe's"] = None
    schedule: Annotated[
        Literal["linear", "cosine", "wsd", "inverse-sqrt"] | None,
        "after the warm-up; wsd: level for 80 % of the budget, then down",
    ] = None
    warmup: Annotated[float | None, "steps of linear warm-up, below 1 a share of the budget; default: the recipe's"] = None
    weight_decay: Annotated[float | None, "decoupled, of matrices and embeddings; default: the recipe's"] = None
    layer_decay: Annotated[float | None, "each layer learns so many times as fast as the one above it, such as 0.9; heads at full rate"] = (
        None
    )
    clip: Annotated[float, "largest gradient norm; 0: none"] = 1.0
    batch_tokens: Annotated[
        int | None, "tokens a batch, both sides, padding counted, or entries of pictures; default: fitted to the data"
    ] = None
    accumulate: Annotated[int, "compute each batch in so many parts, to save memory; the gradient is the same"] = 1
    average: Annotated[int, "average the last so many evaluated weights at the end; 1: none"] = 1
    ema: Annotated[float | None, "decay of a moving average of the weights, such as 0.999: that is evaluated and kept"] = None
    precision: Annotated[Literal["float32", "bfloat16", "float16"], "of products; float16 with loss scaling"] = "float32"
    recompute: Annotated[bool, "keep no activations inside blocks, compute them again: less memory, a third more work"] = False
    compile: Annotated[bool, "compile the training step (torch.compile): slow to start, faster to run"] = False
    workers: Annotated[
        int | None, "threads that make batches ahead of the training step, the same in the same order; default: 0, of pictures 1"
    ] = None
    evaluations: Annotated[int, "evaluations spread over the budget"] = 20
    patience: Annotated[int | None, "stop after so many evaluations without a better validation loss"] = None
    save_seconds: Annotated[float, "seconds between checkpoints"] = 60.0
    parallel: Annotated[
        Literal["ddp", "fsdp", "tp", "fsdp+tp"] | None, "under torchrun: copies (default), shards, cut matrices, or both; see docs/scale.md"
    ] = None
    tensor: Annotated[int | None, "with --parallel tp or fsdp+tp: ranks that share a matrix"] = None
    tensorboard: Annotated[bool, "event files for TensorBoard in RUN/tensorboard"] = False
    wandb: Annotated[str | None, "PROJECT", "log to Weights & Biases as well"] = None
    seed: Annotated[int, "of everything that is random"] = 0
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    resume: Annotated[bool, "go on with the run in --out, exactly where it stopped"] = False
    check: Annotated[bool, "examine the run first, as `plait doctor` does, and do not start it with a fault"] = False
    quiet: Annotated[bool, "no progress"] = False

    def run(self) -> dict[str, Any] | None:
        """Train; returns where the run is and how it ended. Ctrl-C saves, and says how to go on."""
        given = self.resumed() if self.resume else self.checked()
        from plait.train.log import process_age  # brings torch: from here on the clock of --minutes counts

        return given.fit(process_age())

    def checked(self) -> "Train":
        faults = []
        if not self.data:
            faults.append("--data is missing: give files, or a built-in set (`plait data` lists them)")
        chosen = [name for name in BUDGET if getattr(self, name) is not None]
        if len(chosen) != 1:
            had = "none was given" if not chosen else f"{' and '.join('--' + name for name in chosen)} were given"
            faults.append(f"one budget is needed, --minutes, --steps or --epochs: {had}")
        faults += number_faults(self, POSITIVE, ("weight_decay", "clip", "seed", "workers"))
        for name in ("dropout", "smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                faults.append(f"--{name} {value}: must be at least 0 and below 1")
        if self.objective == "span" and self.task != "masked-lm":
            faults.append(f"--objective span goes with masked-lm, not with {self.task}")
        if self.objective == "span" and self.whole_words:
            faults.append("--whole-words goes with --objective mask: spans are drawn over tokens")
        if self.teacher_weight is not None and not 0 <= self.teacher_weight <= 1:
            faults.append(f"--teacher-weight {self.teacher_weight}: must be from 0 to 1")
        if self.teacher is None and (self.teacher_weight, self.teacher_temperature, self.teacher_match) != (None, None, []):
            faults.append("--teacher-weight, --teacher-temperature and --teacher-match go with --teacher: name the model that teaches")
        if self.teacher_temperature is not None and self.teacher_match and "scores" not in self.teacher_match:
            faults.append("--teacher-temperature softens scores: leave it out, or add scores to --teacher-match")
        faults += self.tuning_faults()
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            faults.append(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")
        if self.context is not None and self.context < 8:
            faults.append(f"--context {self.context}: must be at least 8")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            faults.append(f"--out {self.out}: is not empty: choose another folder, or go on with that run by --resume")
        if faults:
            raise InputError("this run cannot start", faults)
        return self

    def tuning_faults(self) -> list[str]:
        given = [name for name in TUNING if getattr(self, name) not in (None, [])]
        if self.method is None:
            return [f"--{name} goes with --method, which tunes a small part of --model" for name in given]
        faults = [] if self.model is not None else [f"--method {self.method}: --model is missing: what is tuned is a model there is"]
        if self.bits not in (None, 8, 4):
            faults.append(f"--bits {self.bits}: expected 8 or 4")
        if self.layer_decay is not None:
            faults.append("--layer-decay is for training all weights; leave out --method or it")
        return faults

    def resumed(self) -> "Train":
        """The settings the run was started with; what was given now must be the same."""
        from plait.hub.runs import read_config

        saved = read_config(self.out).get("train")
        if not isinstance(saved, Mapping):
            raise InputError(f"{self.out / 'config.json'}: does not say how the run was trained: start a new one")
        faults, values = number_faults(self, ("save_seconds", "threads")), {}
        for f in fields(self):
            now, then = getattr(self, f.name), saved.get(f.name)
            default = [] if f.name in LISTS else f.default
            if f.name in FREE or f.name not in saved:
                values[f.name] = now
                continue
            if now not in (default, then) and f.name != "task":
                faults.append(f"--{f.name.replace('_', '-')}: the run has {then}, now {now} was given")
            values[f.name] = then
        if faults:
            raise InputError(f"{self.out}: cannot go on with other settings: leave them out, or start a new run with another --out", faults)
        return Train(**values)

    def saved(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in FREE}

    def fit(self, age: float) -> dict[str, Any] | None:
        from plait.verbs.training import train

        return train(self, age)
