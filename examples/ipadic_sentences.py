"""Tagged sentences with other words of the same kinds, from few sentences and a dictionary in MeCab's form.

usage: ipadic_sentences.py DICTIONARY_FOLDER SENTENCES.iob OUT.iob [COPIES] [SEED]

OUT has each sentence COPIES times (60), as it is and then changed: half of the entities become others of their kind from
all sentences ("mention replacement", Dai and Adel, 2020), then 7 of 10 words for which the dictionary has a kind
another of it: a surname for a surname, a place for a place, a verb for a verb in the same form. So a model sees names that
the sentences lack, and that no single word of a sentence decides. Nothing is read but the sentences given.
"""

import collections
import csv
import itertools
import math
import pathlib
import random
import sys

MENTION_REPLACED = 0.5
WORD_REPLACED = 0.7
# Costs are logarithms of frequencies: such a difference makes a word e times as rare. MeCab's own factor, about 700, would
# draw little but the most frequent names.
COST_SCALE = 1500
# The few words that cost less are as frequent as those that cost so much.
LEAST_COST = 3000
OPEN_NOUNS = {"一般", "サ変接続", "形容動詞語幹"}
# What the dictionary calls the names that stand in entities of a kind. Others stay as they are.
NAMES_OF_ENTITY = {"LOC": ["地域"], "PSN": ["人名"], "ORG": ["組織", "地域"]}


def kind(entry):
    """Part of speech and form, if words of it may take each other's place; else none."""
    speech, detail = entry[4], entry[5]
    is_open = speech == "副詞" or (speech in ("動詞", "形容詞") and detail == "自立")
    if is_open or (speech == "名詞" and (detail == "固有名詞" or detail in OPEN_NOUNS)):
        return tuple(entry[4:10])
    return None


def is_name(word_kind):
    return word_kind is not None and word_kind[1] == "固有名詞"


class Dictionary:
    """The kinds of each word, with costs, and the words of each kind."""

    def __init__(self, folder):
        self.kinds = collections.defaultdict(dict)
        for path in sorted(folder.glob("*.csv")):
            with path.open(encoding="euc_jp", newline="") as lines:
                for entry in csv.reader(lines):
                    word, cost, of = entry[0], int(entry[3]), kind(entry)
                    self.kinds[word][of] = min(cost, self.kinds[word].get(of, cost))
        words = collections.defaultdict(list)
        for word, kinds in self.kinds.items():
            for of, cost in kinds.items():
                words[of].append((word, math.exp(-max(cost, LEAST_COST) / COST_SCALE)))
        self.words = {
            of: ([word for word, _ in entries], list(itertools.accumulate(weight for _, weight in entries)))
            for of, entries in words.items()
        }

    def kind_of(self, word, tag):
        """The most frequent kind that fits the tag; none if the word should stay."""
        kinds = [(cost, of) for of, cost in self.kinds.get(word, {}).items()]
        if tag == "O":
            return min(((cost, of) for cost, of in kinds if not is_name(of)), key=lambda x: x[0], default=(0, None))[1]
        for names in NAMES_OF_ENTITY.get(tag[2:], []):
            fitting = [(cost, of) for cost, of in kinds if is_name(of) and of[2] == names]
            if fitting:
                return min(fitting)[1]
        return None

    def draw(self, of, random_numbers):
        words, weights = self.words[of]
        return random_numbers.choices(words, cum_weights=weights)[0]


def read(path):
    """Sentences: lists of words with their tags."""
    blocks = path.read_text(encoding="utf-8").strip("\n").split("\n\n")
    return [[tuple(line.split("\t")) for line in block.split("\n")] for block in blocks]


def parts(sentence):
    """(kind, words with tags): each entity a part, and each word outside one, which has no kind."""
    found = []
    for word, tag in sentence:
        if tag.startswith("I-") and found and found[-1][0] == tag[2:]:
            found[-1][1].append((word, tag))
        else:
            found.append((None if tag == "O" else tag[2:], [(word, tag)]))
    return found


def changed(sentence, mentions, dictionary, random_numbers):
    for of, words in parts(sentence):
        if of is not None and random_numbers.random() < MENTION_REPLACED:
            words = random_numbers.choice(mentions[of])
        for word, tag in words:
            if random_numbers.random() < WORD_REPLACED:
                of_word = dictionary.kind_of(word, tag)
                if of_word is not None:
                    word = dictionary.draw(of_word, random_numbers)
                elif word.isascii() and word.isdigit() and len(word) < 3:
                    word = str(random_numbers.randint(1, 31))
            yield word, tag


def main(folder, source, out, copies="60", seed="1"):
    random_numbers = random.Random(int(seed))
    dictionary, sentences = Dictionary(pathlib.Path(folder)), read(pathlib.Path(source))
    mentions = collections.defaultdict(list)
    for of, words in itertools.chain.from_iterable(map(parts, sentences)):
        mentions[of].append(words)
    with open(out, "w", encoding="utf-8") as lines:
        for copy in range(int(copies)):
            for sentence in sentences:
                if copy > 0:
                    sentence = changed(sentence, mentions, dictionary, random_numbers)
                lines.writelines(f"{word}\t{tag}\n" for word, tag in sentence)
                lines.write("\n")
    print(f"{int(copies) * len(sentences)} sentences")


if __name__ == "__main__":
    main(*sys.argv[1:])
