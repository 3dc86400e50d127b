"""English and Chinese paragraphs of LibreOffice's help pages, aligned by the ids that both languages share.

usage: help_pairs.py ENGLISH_FOLDER CHINESE_FOLDER OUT_FOLDER

Writes train.tsv and test.tsv with the columns `source` and `target`. A page is on one side as a whole, and what is said on
several pages is kept once, so no sentence of the test is seen in training.
"""

import hashlib
import html.parser
import pathlib
import sys

TEST_FRACTION = 0.05
MOST_CHARACTERS = 300
# Elements that have no end.
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Paragraphs(html.parser.HTMLParser):
    """The text of each element whose id starts with `par_id`, `hd_id` or `tit`."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.texts, self.open, self.depth = {}, None, 0

    def handle_starttag(self, tag, attributes):
        if tag in VOID:
            # A line that ends ends a word.
            self.handle_data(" ")
            return
        name = dict(attributes).get("id") or ""
        if self.open is None and name.startswith(("par_id", "hd_id", "tit")):
            self.open, self.depth = name, 0
            self.texts.setdefault(name, "")
        if self.open is not None:
            self.depth += 1

    def handle_endtag(self, tag):
        if self.open is not None and tag not in VOID:
            self.depth -= 1
            if self.depth <= 0:
                self.open = None

    def handle_data(self, data):
        if self.open is not None:
            self.texts[self.open] += data


def paragraphs(path):
    parser = Paragraphs()
    parser.feed(path.read_text(encoding="utf-8"))
    return {name: " ".join(text.split()) for name, text in parser.texts.items()}


def number(text):
    """A number from 0 to 1 that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def main(english, chinese, out):
    pages = sorted(path.relative_to(english) for path in english.rglob("*.html"))
    pages = [page for page in pages if (chinese / page).is_file()]
    kept, seen = {"train": [], "test": []}, set()
    # The test first, so that what pages share is not lost to training.
    pages.sort(key=lambda page: (number(str(page)) >= TEST_FRACTION, str(page)))
    for page in pages:
        side = "test" if number(str(page)) < TEST_FRACTION else "train"
        source, target = paragraphs(english / page), paragraphs(chinese / page)
        for name in sorted(source.keys() & target.keys()):
            pair = (source[name], target[name])
            is_translated = all(pair) and pair[0] != pair[1] and any("\u4e00" <= c <= "\u9fff" for c in pair[1])
            if is_translated and max(map(len, pair)) <= MOST_CHARACTERS and pair[0] not in seen:
                seen.add(pair[0])
                kept[side].append((str(page), name, *pair))
    out.mkdir(parents=True, exist_ok=True)
    for side, pairs in kept.items():
        lines = [f"{source}\t{target}".replace('"', '""') for *_, source, target in sorted(pairs)]
        rows = ['"' + line.replace("\t", '"\t"') + '"' for line in lines]
        (out / f"{side}.tsv").write_text("source\ttarget\n" + "\n".join(rows) + "\n", encoding="utf-8")
        print(f"{side}: {len(pairs)} pairs")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
