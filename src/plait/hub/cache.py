"""Models of the Hugging Face Hub by their ids: found in its cache on this machine, else downloaded, only the files that are read."""

import importlib.util
import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from plait.errors import InputError
from plait.weights.opening import LAYOUT

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")

# What is read of a repository, beside its weights.
READ = (
    *("config.json", "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "modules.json", "*.jinja", "1_Pooling/config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "sentence_bert_config.json", "*preprocessor_config.json"),
    *("config_sentence_transformers.json", "*.model", "*.spm"),
)
SAFE = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def folder_of(name: str) -> Path:
    """The folder of `org/name` or `org/name@revision` (a branch, a tag, the beginning of a commit), downloaded where it is not cached.

    InputError says what to do where it is neither there nor to be had. The cache is where Hugging Face's own libraries keep it
    (HF_HUB_CACHE, HF_HOME), and HF_HUB_OFFLINE is respected.
    """
    match = ID.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: is no id of the Hugging Face Hub: expected org/name or org/name@revision")
    repo, revision = match["repo"], match["revision"]
    found = cached(repo, revision)
    lacks = lacking(found) if found else []
    if found and not lacks:
        return found
    if found:
        wrong = f"{name}: its copy in the cache of the Hugging Face Hub is not whole, as a download that was interrupted leaves it: {found}"
    else:
        wrong = f"{name}: is no folder here, and not in the cache of the Hugging Face Hub, {cache_dir()}"
    by_hand = (
        f"or download {', '.join(READ[:2])}, its *.safetensors and its tokenizer's files by hand into one folder, and give that folder"
    )
    if any(os.environ.get(flag, "").upper() in ("1", "ON", "YES", "TRUE") for flag in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise InputError(f"{wrong}. Nothing is downloaded, since HF_HUB_OFFLINE is set: unset it, {by_hand}", lacks)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{wrong}. To have it downloaded: pip install huggingface_hub; {by_hand}", lacks)
    try:
        return _download(repo, revision)
    except InputError:
        raise
    except Exception as error:  # its kinds of errors differ between its versions, and it lets those of its HTTP library through
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{wrong}. Downloading it failed: see that the id is right and the network there, {by_hand}",
            [*lacks, f"{type(error).__name__}: {said}"],
        ) from None


def cache_dir() -> Path:
    """Where Hugging Face's own libraries keep what they download."""
    if found := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(found).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(caches) / "huggingface").expanduser() / "hub"


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot of a revision, by default of `main`, or the only one there is."""
    place = cache_dir() / f"models--{repo.replace('/', '--')}"
    try:
        commit = (place / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    found = sorted(path for path in place.glob("snapshots/*") if path.name.startswith(commit))
    if len(found) > 1:
        raise InputError(f"{repo}: which of its revisions in the cache is meant? Give {repo}@ and one of", [path.name for path in found])
    return found[0] if found else None


def lacking(folder: Path) -> list[str]:
    """What a snapshot would need to be opened, one line each: links to nothing, no config.json, no weights, shards of an index."""
    faults = [f"{path.relative_to(folder)}: is a link to nothing" for path in sorted(folder.rglob("*")) if not path.exists()]
    if faults or any(folder.glob("*.gguf")):
        return faults
    faults = [] if (folder / "config.json").exists() else ["config.json: is not there"]
    weights = next((folder / name for name in LAYOUT if (folder / name).exists()), None)
    if weights is None:
        return [*faults, "its weights: none of " + ", ".join(LAYOUT)]
    if weights.name.endswith(".index.json"):
        try:
            shards = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return [*faults, f"{weights.name}: is no index of shards"]
        faults += [f"{shard}: is not there" for shard in sorted(map(str, shards)) if not (folder / shard).exists()]
    return faults


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub

    files = wanted(huggingface_hub.HfApi().list_repo_files(repo, revision=revision))
    if not files:
        raise InputError(f"{repo}: has no config.json with {SAFE[0]} or {PICKLES[0]} beside it, and nothing else is read")
    folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files))
    if lacks := lacking(folder):
        raise InputError(f"{repo}: was downloaded, and is not whole: {folder}", lacks)
    return folder


def wanted(names: list[str]) -> list[str]:
    """Which files of a repository are read: none where it has no config.json or no weights, and pickles only where nothing is safer."""

    def like(patterns: tuple[str, ...]) -> list[str]:
        # Only in the folder that the pattern names: an `onnx/config.json` is another program's.
        return [name for name in names if any(name.count("/") == p.count("/") and fnmatchcase(name, p) for p in patterns)]

    weights = like(SAFE) or like(PICKLES)
    return like(READ) + weights if weights and "config.json" in names else []
