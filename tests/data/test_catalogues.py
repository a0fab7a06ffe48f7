import gettext
import gzip
import io
import shutil
import struct
import subprocess

import pytest

from plait.data.pairs import read_pairs
from plait.errors import InputError

HEADER = r"""msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"
"""
PO = (
    HEADER
    + r"""
# a comment
#: src/door.c:3
msgid "The door is \"open\".\n"
msgstr "Die Tür ist "
"»offen«.\n"

#, fuzzy, c-format
#| msgid "Close"
msgid "Close %s"
msgstr "Öffnen %s"

msgid "Untranslated"
msgstr ""

msgctxt "menu"
msgid "Open\tnow"
msgstr "Öffnen\tjetzt"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#~ msgid "Old"
#~ msgstr "Alt"
"""
)
WANTED = [
    ('The door is "open".\n', "Die Tür ist »offen«.\n"),
    ("Open\tnow", "Öffnen\tjetzt"),
    ("%d file", "%d Datei"),
    ("%d files", "%d Dateien"),
]


def both(pairs):
    return [(pair.source, pair.target) for pair in pairs]


def mo(messages: dict[bytes, bytes], order: str = "<") -> bytes:
    """A .mo file by the layout in GNU gettext's manual."""
    n, start = len(messages), 28 + 16 * len(messages)
    tables, strings = [b"", b""], b""
    for which, texts in enumerate((sorted(messages), [messages[key] for key in sorted(messages)])):
        for text in texts:
            tables[which] += struct.pack(f"{order}2I", len(text), start + len(strings))
            strings += text + b"\0"
    return struct.pack(f"{order}7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 28 + 16 * n) + tables[0] + tables[1] + strings


MESSAGES = {
    b"": b"Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n",
    b'The door is "open".\n': "Die Tür ist »offen«.\n".encode(),
    b"menu\x04Open\tnow": "Öffnen\tjetzt".encode(),
    b"%d file\0%d files": b"%d Datei\0%d Dateien",
}


@pytest.mark.parametrize("packed", [False, True])
def test_po(tmp_path, packed):
    path = tmp_path / ("de.po.gz" if packed else "de.po")
    path.write_bytes(gzip.compress(PO.encode()) if packed else PO.encode())
    pairs, report = read_pairs([path])
    assert both(pairs) == WANTED
    line = PO[: PO.index('msgid "The door')].count("\n") + 1
    assert pairs[0].where == f"{path}:{line}"
    assert {reason: f.count for reason, f in report.dropped.items()} == {"fuzzy entry": 1, "untranslated entry": 1, "obsolete entry": 1}


def test_entries_without_blank_lines_and_crlf(tmp_path):
    path = tmp_path / "x.po"
    path.write_text('msgid "a"\r\nmsgstr "ä"\r\nmsgid "b"\r\nmsgstr "c\\x41\\101"\r\n', newline="")
    assert both(read_pairs([path])[0]) == [("a", "ä"), ("b", "cAA")]


def test_another_charset(tmp_path):
    path = tmp_path / "x.po"
    path.write_bytes(PO.replace("UTF-8", "ISO-8859-1").encode("latin-1"))
    assert both(read_pairs([path])[0]) == WANTED
    path.write_bytes(PO.encode("latin-1"))
    with pytest.raises(InputError, match=r"x.po:9: not UTF-8: byte 0xfc"):
        read_pairs([path])
    path.write_bytes(PO.replace("UTF-8", "base64").encode())
    with pytest.raises(InputError, match="charset=base64"):
        read_pairs([path])


def test_plural_forms_follow_the_catalogues_own_formula(tmp_path):
    arabic = "nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 ? 4 : 5;"
    entry = 'msgid "one"\nmsgid_plural "many"\n'
    path = tmp_path / "ar.po"
    path.write_text(
        HEADER.replace("nplurals=2; plural=(n != 1);", arabic) + "\n" + entry + "".join(f'msgstr[{i}] "f{i}"\n' for i in range(6))
    )
    assert both(read_pairs([path])[0]) == [("many", "f0"), ("one", "f1"), *(("many", f"f{i}") for i in range(2, 6))]
    path.write_text(HEADER.replace("nplurals=2; plural=(n != 1);", "nplurals=1; plural=0;") + "\n" + entry + 'msgstr[0] "%d"\n')
    assert both(read_pairs([path])[0]) == [("many", "%d")]


def test_po_faults_come_with_lines_and_all_at_once(tmp_path):
    path = tmp_path / "x.po"
    path.write_text('msgid "a"\nmsgstr "b"\nnonsense\n\nmsgid "no end\nmsgstr "x"\nmsgid "last"\n')
    with pytest.raises(InputError) as caught:
        read_pairs([path])
    assert "x.po:3" in str(caught.value) and "x.po:5" in str(caught.value)
    (tmp_path / "y.mo").write_bytes(b"hello")
    with pytest.raises(InputError) as caught:
        read_pairs([path, tmp_path / "y.mo"])
    assert "x.po:3" in str(caught.value) and "y.mo" in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_mo_in_both_byte_orders(tmp_path, order):
    path = tmp_path / "de.mo"
    path.write_bytes(mo(MESSAGES, order))
    pairs, _ = read_pairs([path])
    assert sorted(both(pairs)) == sorted(WANTED)
    reference = gettext.GNUTranslations(io.BytesIO(path.read_bytes()))  # the standard library's own reader
    assert reference.ngettext("%d file", "%d files", 5) == "%d Dateien"
    assert reference.pgettext("menu", "Open\tnow") == "Öffnen\tjetzt"


def test_mo_faults(tmp_path):
    path = tmp_path / "de.mo"
    for content, said in (
        (b"hello", "no .mo catalogue"),
        (mo(MESSAGES)[:-20], "breaks off"),
        (mo(MESSAGES)[:40], "breaks off"),
        (b"", "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_pairs([path])


@pytest.mark.skipif(not shutil.which("msgfmt"), reason="GNU msgfmt is not installed")
def test_gnu_msgfmt_says_the_same(tmp_path):
    (tmp_path / "de.po").write_text(PO, encoding="utf-8")
    subprocess.run(["msgfmt", "-o", tmp_path / "de.mo", tmp_path / "de.po"], check=True)
    compiled, written = read_pairs([tmp_path / "de.mo"])[0], read_pairs([tmp_path / "de.po"])[0]
    assert sorted(both(compiled)) == sorted(both(written)) == sorted(WANTED)
