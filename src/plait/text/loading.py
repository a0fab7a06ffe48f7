"""Loading the tokenizers that come with released checkpoints, from whichever files their authors wrote."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from plait.errors import InputError
from plait.text.chat import read_chat_template
from plait.text.gguf_tokens import QWEN, byte_pair_model, check_merges
from plait.text.loaded import LoadedTokenizer
from plait.text.marian import MarianTokenizer
from plait.text.sentencepiece_file import BPE, CONTROL, SPACE, USER, build_sentencepiece, normalizer_faults, read_sentencepiece
from plait.text.special import SpecialTokens, ends, flag, read_object, read_special, read_text, wrapping

FILES = "tokenizer.json, vocab.json with merges.txt, vocab.txt, a SentencePiece .model, or source.spm with target.spm and vocab.json"
SMILES = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
# What each kind of files is read as. Other tokenizers have files of the same names, and split or number their pieces otherwise.
ROBERTA = ("Roberta", "Bart", "Longformer", "LED", "MVP")
WORD_PIECES = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "SqueezeBert", "LayoutLM")
BYTE_PAIRS = ("GPT2", "GPTNeoX", "Qwen2", *ROBERTA)
SENTENCE_PIECES = ("T5", "MT5", "Albert", "Llama")


def load_tokenizer(path: str | Path, *, side: str = "source") -> LoadedTokenizer:
    """The tokenizer in a checkpoint's folder (the first of `FILES` that is there), or in one file of it.

    Special tokens and chat template come from the JSON files beside it. `side` picks one of Marian's two models.
    """
    path = Path(path)
    if side not in ("source", "target"):
        raise InputError(f"side={side!r}: expected 'source' or 'target'")
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a folder with {FILES}")
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() else _choose(folder)
    special, config = read_special(folder)
    kind = _kind(folder, config)
    try:
        if file.name in ("source.spm", "target.spm"):
            return _marian(folder, file.stem if path.is_file() else side, special)
        if file.name == "vocab.txt" or (file.suffix == ".txt" and file.name != "merges.txt"):
            backend, special = _wordpiece(file, kind, config, special)
        elif file.name in ("vocab.json", "merges.txt"):
            backend, special = _byte_pairs(folder, kind, config, special)
        elif file.suffix == ".json":
            backend = _tokenizer_json(file)
        else:
            backend, special = _sentencepiece(file, kind, config, special)
        return LoadedTokenizer(backend, special=special, chat_template=read_chat_template(folder))
    except InputError as error:
        if str(folder) in error.message:
            raise
        raise InputError(f"{file}: {error.message}", error.faults) from None


def load_pair(folder: str | Path) -> tuple[LoadedTokenizer, LoadedTokenizer]:
    """The tokenizers of source and target: the same object twice where the checkpoint has one."""
    source = load_tokenizer(folder)
    return (source, load_tokenizer(folder, side="target")) if isinstance(source, MarianTokenizer) else (source, source)


def _choose(folder: Path) -> Path:
    def has(name: str) -> bool:
        return (folder / name).is_file()

    if has("tokenizer.json"):
        return folder / "tokenizer.json"
    if has("source.spm") or has("target.spm"):
        return folder / "source.spm"
    if has("vocab.json") and has("merges.txt"):
        return folder / "vocab.json"
    if has("vocab.txt"):
        return folder / "vocab.txt"
    found = sorted(file for file in folder.glob("*.model") if file.is_file())
    if len(found) > 1:
        raise InputError(f"{folder}: has several .model files ({', '.join(file.name for file in found)}): name the one to load")
    if found:
        return found[0]
    half = "vocab.json without merges.txt; " if has("vocab.json") else "merges.txt without vocab.json; " if has("merges.txt") else ""
    raise InputError(f"{folder}: holds no tokenizer: {half}expected {FILES}")


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer's class without `Tokenizer` and `Fast`, as a config names it, else guessed from the kind of model; or ""."""
    path = folder / "config.json"
    about = read_object(path, "a model's config.json") if path.is_file() else {}
    for name in (config.get("tokenizer_class"), about.get("tokenizer_class")):
        if isinstance(name, str) and (kind := name.removesuffix("Fast").removesuffix("Tokenizer")) not in ("", "PreTrained"):
            return kind
    model = about.get("model_type")
    known = {"roberta": "Roberta", "gpt2": "GPT2", "bart": "Bart", "qwen2": "Qwen2", "t5": "T5", "llama": "Llama", "albert": "Albert"}
    known |= {"xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
    return known.get(model, "") if isinstance(model, str) else ""


def _only(kind: str, known: Sequence[str]) -> None:
    if kind and kind not in known:
        raise InputError(f"{kind}Tokenizer is not one of {', '.join(known)}, which such files are read as: load its tokenizer.json instead")


def _tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    text = read_text(file, "a tokenizer.json of Hugging Face tokenizers")
    try:  # a wrong character map makes the library panic, with a trace of its own on stderr, so it is looked at first
        faults = normalizer_faults(json.loads(text)["normalizer"])
    except (ValueError, KeyError, TypeError, RecursionError):
        faults = []  # the library says better what is wrong
    if faults:
        raise InputError(f"{file}: this tokenizer.json cannot be used", faults)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        with contextlib.suppress(Exception):  # a tokenizer may rightly refuse what it has no token for
            backend.encode("a", add_special_tokens=True)
        return backend
    except BaseException as error:  # the library raises bare Exception, and panics past it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{file}: is no tokenizer.json of Hugging Face tokenizers: {error}") from None


# ---- vocab.txt ----


def _wordpiece(file: Path, kind: str, config: Mapping[str, Any], special: SpecialTokens) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    special = special.with_defaults(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
    vocab = _vocab_lines(file, special.roles["unk"])
    unk, cls, sep = (special.roles[role] for role in ("unk", "cls", "sep"))
    if kind == "Smiles" or (">>" in vocab and "[C@H]" in vocab and not any(token.startswith("##") for token in vocab)):
        # Reactions (rxnmapper; Schwaller et al. 2019): no words, and what is no SMILES falls away.
        backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unk))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES), "removed", invert=True)  # type: ignore[assignment]
        backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    else:
        _only(kind, WORD_PIECES)
        backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
        backend.normalizer = normalizers.BertNormalizer(  # type: ignore[assignment]
            clean_text=True,
            handle_chinese_chars=flag(config, "tokenize_chinese_chars", True),
            strip_accents=flag(config, "strip_accents", None),
            lowercase=flag(config, "do_lower_case", True),
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        backend.decoder = decoders.WordPiece(prefix="##")  # type: ignore[assignment]
    if cls in vocab and sep in vocab:
        bert = [(cls, vocab[cls]), (sep, vocab[sep])]
        backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", bert
        )
    return backend, special


def _vocab_lines(file: Path, unk: str) -> dict[str, int]:
    text = read_text(file, "one token a line").replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): U+2028 and the like may be tokens
    vocab: dict[str, int] = {}
    faults = [f"{file}:{id + 1}: is empty; expected a token" for id, token in enumerate(lines) if not token]
    for id, token in enumerate(lines):
        if token and vocab.setdefault(token, id) != id:
            faults.append(f"{file}:{id + 1}: {token!r} stands in line {vocab[token] + 1} already")
    if vocab and unk not in vocab:
        faults.append(f"{file}: has no {unk}, the token for what is unknown")
    if faults:
        raise InputError(f"{file}: this vocabulary cannot be used", faults)
    return vocab


# ---- vocab.json and merges.txt ----


def _byte_pairs(folder: Path, kind: str, config: Mapping[str, Any], special: SpecialTokens) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    vocab = _vocab_json(folder / "vocab.json", special)
    _only("CLIP" if not kind and "a</w>" in vocab else kind, BYTE_PAIRS)  # whose pieces say where words end, not where they begin
    backend = tokenizers.Tokenizer(byte_pair_model(vocab, _merges(folder / "merges.txt", vocab)))
    space = flag(config, "add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if kind == "Qwen2":
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
        backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
            [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        return backend, special.with_defaults(eos="<|endoftext|>", pad="<|endoftext|>")
    # RoBERTa, BART, Longformer, LED ... share one vocabulary and its conventions.
    if (not kind and {"<s>", "</s>", "<mask>"} <= vocab.keys()) or kind in ROBERTA:
        special = special.with_defaults(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
        sep, cls = ((special.roles[role], vocab.get(special.roles[role])) for role in ("sep", "cls"))
        if sep[1] is None or cls[1] is None:
            raise InputError(
                f"{folder / 'vocab.json'}: has no {sep[0] if sep[1] is None else cls[0]}, which a RoBERTa vocabulary must have"
            )
        backend.post_processor = processors.RobertaProcessing((sep[0], sep[1]), (cls[0], cls[1]), True, space)  # type: ignore[assignment]
        return backend, special
    if "<|endoftext|>" in vocab:
        special = special.with_defaults(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
    ends(backend, config, special, bos=False)
    return backend, special


def _vocab_json(file: Path, special: SpecialTokens | None = None) -> dict[str, int]:
    vocab = read_object(file, "an object of tokens and their ids")
    faults = []
    owner: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or id < 0:
            faults.append(f"{file}: {token!r} has the id {id!r}; expected a whole number from 0")
        elif owner.setdefault(id, token) != token:
            faults.append(f"{file}: {token!r} has the id {id} of {owner[id]!r}")
    filled = owner.keys() | {id for id in (special.added.values() if special else ()) if id is not None}
    if not faults and owner:
        top = max(owner)
        missing = [id for id in range(min(top, 2 * len(owner) + 1)) if id not in filled]
        if top >= 2 * len(owner) + 1 or missing:
            faults.append(f"{file}: ids go up to {top}, but {', '.join(map(str, missing[:5]))}{' ...' * (len(missing) > 5)} have no token")
    if not vocab:
        faults.append(f"{file}: is empty")
    if faults:
        raise InputError(f"{file}: this vocabulary cannot be used", faults)
    return vocab


def _merges(file: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = read_text(file, "one merge a line, two tokens with a space between").replace("\r\n", "\n").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not (number == 1 and line.startswith("#version"))]
    return check_merges(((f"{file}:{number}", line) for number, line in numbered), vocab, str(file))


# ---- SentencePiece ----


def _sentencepiece(file: Path, kind: str, config: Mapping[str, Any], special: SpecialTokens) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    _only(kind, SENTENCE_PIECES)
    model = read_sentencepiece(file)
    names = [text for text, _, type in model.pieces if type in (CONTROL, USER)]
    special = special.with_defaults(unk=model.pieces[model.unk][0])
    if kind in ("T5", "MT5") or (not kind and [piece[0] for piece in model.pieces[:3]] == ["<pad>", "</s>", "<unk>"]):
        extra = config.get("extra_ids", 0 if kind == "MT5" else 100)
        if type(extra) is not int or not 0 <= extra <= 100_000:
            raise InputError(f"tokenizer_config.json: extra_ids is {extra!r}; expected a number from 0 to 100000")
        sentinels = [text for i in reversed(range(extra)) if (text := f"<extra_id_{i}>") not in names]
        backend = build_sentencepiece(model, sentinels)
        wrapping(backend, ["$A", "</s>"])
        return backend, special.with_defaults(eos="</s>", pad="<pad>")
    if kind == "Albert" or (not kind and {"[CLS]", "[SEP]"} <= set(names)):
        before: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        before += [normalizers.NFKD(), normalizers.StripAccents()] * (not flag(config, "keep_accents", False))
        before += [normalizers.Lowercase()] * flag(config, "do_lower_case", True)
        backend = build_sentencepiece(model, prefix_normalizers=tuple(before))
        wrapping(backend, ["[CLS]", "$A", "[SEP]"], ["[CLS]", "$A", "[SEP]", "$B", "[SEP]"])
        return backend, special.with_defaults(bos="[CLS]", eos="[SEP]", cls="[CLS]", sep="[SEP]", pad="<pad>", mask="[MASK]")
    backend = build_sentencepiece(model)
    special = special.with_defaults(**{role: name for role, name in (("bos", "<s>"), ("eos", "</s>")) if name in names})
    ends(backend, config, special, bos=kind == "Llama" or (not kind and model.kind == BPE))
    return backend, special


def _marian(folder: Path, side: str, special: SpecialTokens) -> MarianTokenizer:
    special = special.with_defaults(eos="</s>", unk="<unk>", pad="<pad>")
    own = side == "target" and (folder / "target_vocab.json").is_file()  # else both sides share one
    file = folder / ("target_vocab.json" if own else "vocab.json")
    vocab = _vocab_json(file)
    if missing := [f"{file}: has no {special.roles[role]}" for role in ("eos", "unk") if special.roles[role] not in vocab]:
        raise InputError(f"{file}: this vocabulary cannot be used", missing)
    model = read_sentencepiece(folder / f"{side}.spm")
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=special.roles["unk"]))
    backend.add_special_tokens([AddedToken(special.roles[r], special=True) for r in ("eos", "unk", "pad") if special.roles[r] in vocab])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # type: ignore[assignment]
    wrapping(backend, ["$A", special.roles["eos"]])
    return MarianTokenizer(backend, build_sentencepiece(model), special)
