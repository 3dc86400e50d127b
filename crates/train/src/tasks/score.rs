//! What a model said of examples, collected batch by batch and scored as the field does, beside the trivial baseline.

use std::collections::{BTreeMap, HashMap};

use hub::Task;
use metrics::Average;
use serde::Serialize;

use super::decode::largest;
use super::{Examples, Split, column};
use crate::error::TrainError;

/// What counting alone reaches on the same examples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    /// What it says.
    pub name: &'static str,
    /// Its scores, by the names of the model's.
    pub metrics: BTreeMap<&'static str, f64>,
}

/// Scores by name: `accuracy`, `f1`...
pub type Scores = BTreeMap<&'static str, f64>;

/// Scores of a model, and the bar.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Score {
    /// The model's.
    pub metrics: Scores,
    /// The baseline's; none without training examples to count.
    pub baseline: Option<Baseline>,
}

/// What was said so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    classes: Vec<usize>,
    tags: Vec<Vec<usize>>,
    texts: Vec<String>,
    /// Of both texts of each pair.
    embeddings: Vec<[Vec<f64>; 2]>,
    references: Vec<usize>,
    tokens: HashMap<i32, u64>,
}

impl Tally {
    /// Adds the scores of every class, of whole examples or of their tokens, for the examples of a batch.
    pub fn add_logits(
        &mut self,
        task: Task,
        split: &Split,
        examples: &[Option<usize>],
        logits: &[f64],
        num_classes: usize,
    ) {
        let per_example = logits.len() / examples.len();
        for (example, logits) in examples.iter().zip(logits.chunks_exact(per_example)) {
            let Some(example) = example else { continue };
            self.references.push(*example);
            if task != Task::Tag {
                self.classes.push(largest(logits));
                continue;
            }
            // A word that was cut off, or that the tokenizer drops, is outside of all entities.
            let mut tags = vec![0; split.store.ints(*example, column::TAGS).len()];
            for (word, logits) in
                split.store.ints(*example, column::WORD_OF).zip(logits.chunks_exact(num_classes))
            {
                if let Ok(word) = usize::try_from(word) {
                    tags[word] = largest(logits);
                }
            }
            self.tags.push(tags);
        }
    }

    /// Adds the embeddings of the pairs of a batch, first and second by turns.
    pub fn add_embeddings(&mut self, examples: &[Option<usize>], embeddings: &[f64]) {
        let per_pair = embeddings.len() / examples.len();
        for (example, both) in examples.iter().zip(embeddings.chunks_exact(per_pair)) {
            if let Some(example) = example {
                self.references.push(*example);
                let (first, second) = both.split_at(per_pair / 2);
                self.embeddings.push([first.to_vec(), second.to_vec()]);
            }
        }
    }

    /// Adds what the model wrote for the examples of a batch.
    pub fn add_texts(&mut self, examples: &[Option<usize>], texts: Vec<String>) {
        for (example, text) in examples.iter().zip(texts) {
            if let Some(example) = example {
                self.references.push(*example);
                self.texts.push(text);
            }
        }
    }

    /// Adds tokens that were to be predicted.
    pub fn add_tokens(&mut self, tokens: impl Iterator<Item = i32>) {
        tokens.for_each(|token| *self.tokens.entry(token).or_default() += 1);
    }

    /// The scores of all that was added.
    ///
    /// # Errors
    /// None but those of the metrics, whose inputs fit here.
    pub fn score(self, task: Task, examples: &Examples, split: &Split) -> Result<Score, TrainError> {
        let trained = Some(&examples.train).filter(|train| train.len() > 0);
        match task {
            Task::Classify | Task::ImageClassify => self.score_classes(examples, split, trained),
            Task::Tag => self.score_tags(examples, split, trained),
            Task::Seq2Seq => self.score_texts(split, trained),
            Task::Embed => self.score_pairs(examples, split),
            _ => Ok(Score {
                metrics: Scores::new(),
                baseline: trained.and_then(|t| self.of_frequencies(examples, t)),
            }),
        }
    }

    /// The perplexity of predicting each token by how often it stands in the training examples, one added to each count.
    fn of_frequencies(&self, examples: &Examples, trained: &Split) -> Option<Baseline> {
        let vocab_size = examples.tokenizer.as_ref()?.vocab_size();
        let (mut counts, mut total) = (vec![1.0; vocab_size], vocab_size as f64);
        for example in (0..trained.len()).map(|at| trained.example(at)) {
            for token in trained.store.ints(example, column::SOURCE) {
                counts[token as usize] += 1.0;
                total += 1.0;
            }
        }
        let num: u64 = self.tokens.values().sum();
        let nats: f64 =
            self.tokens.iter().map(|(token, n)| -(*n as f64) * (counts[*token as usize] / total).ln()).sum();
        let metrics = BTreeMap::from([("perplexity", metrics::perplexity(nats, num as f64))]);
        (num > 0).then_some(Baseline { name: "each token's frequency", metrics })
    }

    fn score_classes(
        &self,
        examples: &Examples,
        split: &Split,
        trained: Option<&Split>,
    ) -> Result<Score, TrainError> {
        let actual: Vec<usize> = self
            .references
            .iter()
            .map(|example| split.store.ints(*example, column::TARGET).next().unwrap_or(0) as usize)
            .collect();
        let of = |predicted: &[usize]| -> Result<Scores, TrainError> {
            let found = metrics::classification(predicted, &actual, examples.labels.len())?;
            let average = found.average(Average::Macro);
            Ok(BTreeMap::from([
                ("accuracy", found.accuracy()),
                ("precision", average.precision),
                ("recall", average.recall),
                ("f1", average.f1),
            ]))
        };
        let baseline = trained.map(|train| {
            let most = most_frequent(train.classes()).unwrap_or(0);
            Ok::<_, TrainError>(Baseline {
                name: "the most frequent class",
                metrics: of(&vec![most; actual.len()])?,
            })
        });
        Ok(Score { metrics: of(&self.classes)?, baseline: baseline.transpose()? })
    }

    fn score_tags(
        &self,
        examples: &Examples,
        split: &Split,
        trained: Option<&Split>,
    ) -> Result<Score, TrainError> {
        let names =
            |tags: &[usize]| -> Vec<&str> { tags.iter().map(|t| examples.labels[*t].as_str()).collect() };
        let tags_of = |split: &Split, example: usize| -> Vec<usize> {
            split.store.ints(example, column::TAGS).map(|tag| tag as usize).collect()
        };
        let actual: Vec<Vec<usize>> =
            self.references.iter().map(|example| tags_of(split, *example)).collect();
        let actual: Vec<Vec<&str>> = actual.iter().map(|tags| names(tags)).collect();
        let of = |predicted: &[Vec<usize>]| -> Result<Scores, TrainError> {
            let predicted: Vec<Vec<&str>> = predicted.iter().map(|tags| names(tags)).collect();
            let found = metrics::entity_scores(&predicted, &actual)?;
            let average = found.average(Average::Micro);
            Ok(BTreeMap::from([
                ("accuracy", found.accuracy()),
                ("precision", average.precision),
                ("recall", average.recall),
                ("f1", average.f1),
            ]))
        };
        let words_of = |split: &Split, example: usize| -> Vec<[i32; 2]> {
            let halves: Vec<i32> = split.store.ints(example, column::WORDS).collect();
            halves.as_chunks::<2>().0.to_vec()
        };
        let baseline = trained.map(|train| {
            let mut counts: HashMap<[i32; 2], Vec<usize>> = HashMap::new();
            let mut all = Vec::new();
            for example in (0..train.len()).map(|at| train.example(at)) {
                for (word, tag) in words_of(train, example).into_iter().zip(tags_of(train, example)) {
                    counts.entry(word).or_default().push(tag);
                    all.push(tag);
                }
            }
            let usual = most_frequent(all).unwrap_or(0);
            let known: HashMap<[i32; 2], usize> =
                counts.into_iter().map(|(word, tags)| (word, most_frequent(tags).unwrap_or(usual))).collect();
            let tag = |word: [i32; 2]| known.get(&word).copied().unwrap_or(usual);
            let predicted: Vec<Vec<usize>> =
                self.references.iter().map(|e| words_of(split, *e).into_iter().map(tag).collect()).collect();
            Ok::<_, TrainError>(Baseline { name: "each word's most frequent tag", metrics: of(&predicted)? })
        });
        Ok(Score { metrics: of(&self.tags)?, baseline: baseline.transpose()? })
    }

    /// How well pairs find each other or, where they have scores, are ordered by them; beside what the tokens that both
    /// texts share reach.
    fn score_pairs(&self, examples: &Examples, split: &Split) -> Result<Score, TrainError> {
        let scores: Vec<f64> = self
            .references
            .iter()
            .filter_map(|example| split.store.ints(*example, column::SCORE).next())
            .map(|bits| f64::from(f32::from_bits(bits as u32)))
            .collect();
        let num_pairs = self.references.len();
        let of = |similarity: &dyn Fn(usize, usize) -> f64| -> Result<Scores, TrainError> {
            if scores.len() == num_pairs && num_pairs > 0 {
                let found: Vec<f64> = (0..num_pairs).map(|pair| similarity(pair, pair)).collect();
                return Ok(Scores::from([("spearman", metrics::spearman(&found, &scores)?)]));
            }
            let found = metrics::retrieval(num_pairs, similarity);
            Ok(Scores::from([("accuracy_at_1", found.accuracy_at_1), ("mrr", found.mean_reciprocal_rank)]))
        };
        let is_special = |id: i32| examples.tokenizer.as_ref().is_some_and(|t| t.is_special(id as u32));
        let counts = |example: usize, column: usize| {
            let mut counts: BTreeMap<i32, f64> = BTreeMap::new();
            for id in split.store.ints(example, column).filter(|id| !is_special(*id)) {
                *counts.entry(id).or_default() += 1.0;
            }
            let norm = counts.values().map(|n| n * n).sum::<f64>().sqrt();
            counts.values_mut().for_each(|n| *n /= norm);
            counts
        };
        let bags: Vec<[BTreeMap<i32, f64>; 2]> = self
            .references
            .iter()
            .map(|example| [column::SOURCE, column::TARGET].map(|column| counts(*example, column)))
            .collect();
        let shared = |first: usize, second: usize| {
            let second = &bags[second][1];
            bags[first][0].iter().map(|(id, n)| n * second.get(id).unwrap_or(&0.0)).sum()
        };
        let cosine = |first: usize, second: usize| {
            let [first, second] = [&self.embeddings[first][0], &self.embeddings[second][1]];
            first.iter().zip(second).map(|(a, b)| a * b).sum()
        };
        let baseline = Some(Baseline { name: "the tokens that both share", metrics: of(&shared)? });
        Ok(Score { metrics: of(&cosine)?, baseline })
    }

    fn score_texts(&self, split: &Split, trained: Option<&Split>) -> Result<Score, TrainError> {
        let text = |split: &Split, example: usize, column: usize| {
            String::from_utf8_lossy(split.store.bytes(example, column)).into_owned()
        };
        let column = |column: usize| -> Vec<String> {
            self.references.iter().map(|example| text(split, *example, column)).collect()
        };
        let actual: Vec<Vec<String>> =
            column(column::TARGET_TEXT).into_iter().map(|text| vec![text]).collect();
        let is_chinese = |c: char| ('\u{4e00}'..='\u{9fff}').contains(&c);
        let tokenizer = match actual.iter().flatten().any(|text| text.chars().any(is_chinese)) {
            true => metrics::Tokenizer::Chinese,
            false => metrics::Tokenizer::Mteval13a,
        };
        let of = |outputs: &[String]| -> Result<Scores, TrainError> {
            let same = outputs.iter().zip(&actual).filter(|(output, actual)| *output == &actual[0]).count();
            Ok(BTreeMap::from([
                ("bleu", metrics::bleu(outputs, &actual, tokenizer)?.score),
                ("chrf", metrics::chrf(outputs, &actual)?),
                ("exact_match", same as f64 / outputs.len().max(1) as f64),
            ]))
        };
        let baseline = trained.map(|train| {
            let targets = (0..train.len()).map(|at| text(train, train.example(at), column::TARGET_TEXT));
            let usual = most_frequent(targets.collect()).unwrap_or_default();
            let usual = of(&vec![usual; actual.len()])?;
            let copied = of(&column(column::SOURCE_TEXT))?;
            Ok::<_, TrainError>(match copied["chrf"] > usual["chrf"] {
                true => Baseline { name: "the source itself", metrics: copied },
                false => Baseline { name: "the most frequent target", metrics: usual },
            })
        });
        Ok(Score { metrics: of(&self.texts)?, baseline: baseline.transpose()? })
    }
}

/// The most frequent of some values, the least of equals.
fn most_frequent<T: Ord>(mut values: Vec<T>) -> Option<T> {
    values.sort();
    let (mut best, mut most) = (None, 0);
    let mut start = 0;
    while start < values.len() {
        let end = start + values[start..].partition_point(|value| *value == values[start]);
        if end - start > most {
            (best, most) = (Some(start), end - start);
        }
        start = end;
    }
    best.map(|at| values.swap_remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_is_the_least_of_equals() {
        assert_eq!(most_frequent(vec![3, 1, 2, 1, 3]), Some(1));
        assert_eq!(most_frequent(vec![3, 1, 3]), Some(3));
        assert_eq!(most_frequent(Vec::<u8>::new()), None);
    }
}
