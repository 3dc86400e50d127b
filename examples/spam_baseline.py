"""TF-IDF and logistic regression on the split of examples/spam.toml: the bar of docs/tasks.md. Needs scikit-learn 1.9.

usage: spam_baseline.py [FOLDER]
"""

import json
import pathlib
import sys

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "data/spam")


def read(name):
    rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


texts, labels = read("train.jsonl")
test_texts, test_labels = read("test.jsonl")
for ngrams in [(1, 1), (1, 2)]:
    vectors = TfidfVectorizer(ngram_range=ngrams, sublinear_tf=True, lowercase=True)
    for c in [1.0, 10.0, 100.0]:
        model = LogisticRegression(C=c, max_iter=1000).fit(vectors.fit_transform(texts), labels)
        predicted = model.predict(vectors.transform(test_texts))
        accuracy = accuracy_score(test_labels, predicted)
        macro = f1_score(test_labels, predicted, average="macro")
        print(f"n-grams {ngrams}, C {c}: accuracy {accuracy:.4f}, macro f1 {macro:.4f}")
