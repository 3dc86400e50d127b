"""Tests of the scripts that make data of packages, on what a few lines of those packages look like.

usage: python3 -m unittest discover -s examples -p "test_*.py"
"""

import contextlib
import csv
import io
import pathlib
import random
import tempfile
import unittest

import help_pairs
import ipadic_sentences

# Surface, two numbers, cost, then part of speech and form, as MeCab's dictionaries have them.
DICTIONARY = """\
京都,1293,1293,3000,名詞,固有名詞,地域,一般,*,*,京都,キョウト,キョート
奈良,1293,1293,3000,名詞,固有名詞,地域,一般,*,*,奈良,ナラ,ナラ
奈良,1290,1290,2000,名詞,固有名詞,人名,姓,*,*,奈良,ナラ,ナラ
田中,1290,1290,3000,名詞,固有名詞,人名,姓,*,*,田中,タナカ,タナカ
公園,1285,1285,3000,名詞,一般,*,*,*,*,公園,コウエン,コーエン
会社,1285,1285,3000,名詞,一般,*,*,*,*,会社,カイシャ,カイシャ
行く,1,1,3000,動詞,自立,*,*,五段,基本形,行く,イク,イク
書く,1,1,3000,動詞,自立,*,*,五段,基本形,書く,カク,カク
書い,1,1,3000,動詞,自立,*,*,五段,連用形,書く,カイ,カイ
は,1,1,100,助詞,係助詞,*,*,*,*,は,ハ,ワ
"""
SENTENCES = [
    [("田中", "B-PSN"), ("は", "O"), ("京都", "B-LOC"), ("公園", "I-LOC"), ("へ", "O"), ("行く", "O")],
    [("奈良", "B-LOC"), ("で", "O"), ("書い", "O"), ("た", "O")],
]


class Sentences(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "Words.csv").write_text(DICTIONARY, encoding="euc_jp")
        text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in SENTENCES)
        (self.folder / "sentences.iob").write_text(text, encoding="utf-8")

    def test_a_kind_fits_the_tag(self):
        dictionary = ipadic_sentences.Dictionary(self.folder)
        self.assertEqual(dictionary.kind_of("奈良", "B-LOC")[2], "地域", "though it is rarer than the surname")
        self.assertEqual(dictionary.kind_of("奈良", "B-PSN")[2], "人名")
        self.assertEqual(dictionary.kind_of("京都", "B-ORG")[2], "地域", "a team of a place")
        for word, tag in [("京都", "O"), ("公園", "I-LOC"), ("は", "O"), ("へ", "O"), ("奈良", "B-ART")]:
            self.assertIsNone(dictionary.kind_of(word, tag), word)
        drawn = {dictionary.draw(dictionary.kind_of("行く", "O"), random.Random(n)) for n in range(30)}
        self.assertEqual(drawn, {"行く", "書く"}, "verbs in the same form")

    def test_copies_keep_entities_and_form(self):
        out = self.folder / "out.iob"
        with contextlib.redirect_stdout(io.StringIO()):
            ipadic_sentences.main(self.folder, self.folder / "sentences.iob", out, "50")
        found = ipadic_sentences.read(out)
        self.assertEqual(len(found), 100)
        self.assertEqual(found[:2], SENTENCES, "the first copy is as it was")
        self.assertTrue(any(sentence not in SENTENCES for sentence in found))
        for source, sentence in zip(SENTENCES * 50, found):
            kinds = [[of for of, _ in ipadic_sentences.parts(words)] for words in (source, sentence)]
            self.assertEqual(*kinds)
            for of, words in ipadic_sentences.parts(sentence):
                if of == "PSN":
                    self.assertIn(words[0][0], {"田中", "奈良"})
                if of == "LOC":
                    self.assertIn(words[0][0], {"京都", "奈良"})


PAGE = """<html><body><h1 id="hd_id1">{heading}</h1>
<p id="par_id2">{text}<br>{more} <a href="x.html" id="bm_id9">{link}</a> {more}.</p>
<p>{outside}</p><div id="par_id3"><img src="x.png"><p>{inner}</p></div>
<p id="par_id4">{latin}</p><p id="par_id5">中文</p></body></html>"""
ENGLISH = {"heading": "Cells", "text": "Press &amp; hold", "more": "the key", "link": "here", "outside": "no",
           "inner": "Only English", "latin": "Tab"}
CHINESE = {"heading": "单元格", "text": "按住 &amp;", "more": "按键", "link": "这里", "outside": "无",
           "inner": "Only English", "latin": "TAB"}


class Pairs(unittest.TestCase):
    def test_paragraphs_of_both_languages_meet(self):
        with tempfile.TemporaryDirectory() as folder:
            english, chinese, out = (pathlib.Path(folder) / name for name in ("en", "zh", "out"))
            for place, words in [(english, ENGLISH), (chinese, CHINESE)]:
                for page in range(60):
                    path = place / f"text/page{page}.html"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    own = {**words, "heading": f'{words["heading"]} "{page}"'}
                    path.write_text(PAGE.format(**own), encoding="utf-8")
            (english / "text/alone.html").write_text(PAGE.format(**ENGLISH), encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()):
                help_pairs.main(english, chinese, out)
            sides = {}
            for side in ("train", "test"):
                with (out / f"{side}.tsv").open(encoding="utf-8", newline="") as lines:
                    header, *sides[side] = map(tuple, csv.reader(lines, delimiter="\t"))
                self.assertEqual(header, ("source", "target"))
        pairs = sides["train"] + sides["test"]
        headings = [(f'Cells "{page}"', f'单元格 "{page}"') for page in range(60)]
        # What all pages say is kept once, on the side of the test; what is not translated not at all.
        shared = ("Press & hold the key here the key.", "按住 & 按键 这里 按键.")
        self.assertCountEqual(pairs, [*headings, shared])
        self.assertIn(shared, sides["test"])
        self.assertTrue(1 < len(sides["test"]) < len(sides["train"]))


if __name__ == "__main__":
    unittest.main()
