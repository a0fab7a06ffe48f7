"""What each id of a tokenizer writes, in bytes: what a grammar over text needs to know of a vocabulary."""

import re

from plait.text.tokenizer import BYTES, Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece vocabularies with a byte fallback name single bytes


def spelled(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes that each id adds amid a text, by id; None for those that stand for no text: ends, padding, the unknown.

    Between words the space belongs to the token as the tokenizer's own decoder has it: SentencePiece's "▁a" is " a".
    """
    backend, size = tokenizer.backend, tokenizer.vocab_size
    added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
    names = {id: name for name, id in backend.get_vocab(with_added_tokens=True).items()}
    silent = tokenizer._silent | {tokenizer.unk_id}
    if tokenizer._byte_level:
        plain = {id: bytes(BYTES[letter] for letter in name) for id, name in names.items() if id not in added}
    else:
        # Some decoders treat the first token of a text in another way, so each is looked at behind one that writes something.
        first = next(id for id in names if id not in silent and not BYTE.fullmatch(names[id]) and backend.decode([id]).strip())
        behind = len(backend.decode([first]))
        texts = backend.decode_batch([[first, id] for id in range(size)], skip_special_tokens=False)
        plain = {id: text[behind:].encode() for id, text in enumerate(texts)}
        plain |= {id: bytes.fromhex(found[1]) for id, name in names.items() if (found := BYTE.fullmatch(name))}
    known = plain | {id: content.encode() for id, content in added.items()}
    return [None if id in silent else known.get(id) or None for id in range(size)]
