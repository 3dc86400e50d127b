//! `phalanx data prepare` and `phalanx tokenizer train`: what comes before training.

use std::path::Path;

use phalanx::data::Tokenizer;
use serde::Serialize;

use crate::arguments::{PrepareArguments, TokenizerArguments};
use crate::failure::Verdict;
use crate::output;

pub fn data(arguments: &PrepareArguments) -> anyhow::Result<Verdict> {
    let config = arguments.config.load(&[], None)?;
    let report = phalanx::prepare(&config)?;
    if arguments.json {
        output::json(&report)?;
        return Ok(Verdict::Success);
    }
    let how = if report.cached { "was there already" } else { "built" };
    output::line(&format!("token cache {} ({how}, {:.1} s)", report.cache.display(), report.seconds))?;
    output::line(&format!("vocabulary: {} tokens", report.vocab_size))?;
    for (name, split) in [("training", Some(report.train)), ("held out", report.heldout)] {
        if let Some(split) = split {
            output::line(&format!(
                "{name}: {} bytes in {} documents, {} tokens ({:.2} bytes each), {} sequences",
                split.bytes,
                split.documents,
                split.tokens,
                split.bytes as f64 / split.tokens.max(1) as f64,
                split.sequences
            ))?;
        }
    }
    if let (Some(unigram), Some(bigram)) = (report.unigram_bits_per_byte, report.bigram_bits_per_byte) {
        output::line(&format!(
            "to beat on the text held out: unigram model {unigram:.3} bits per byte, bigram model {bigram:.3}"
        ))?;
    }
    Ok(Verdict::Success)
}

#[derive(Serialize)]
struct Trained<'a> {
    out: &'a Path,
    vocab_size: usize,
    asked: usize,
    hash: String,
}

pub fn tokenizer(arguments: &TokenizerArguments) -> anyhow::Result<Verdict> {
    let tokenizer = Tokenizer::train(&arguments.files, arguments.vocab)?;
    tokenizer.save(&arguments.out)?;
    let vocab_size = tokenizer.vocab_size();
    if arguments.json {
        let hash = tokenizer.hash().to_string();
        output::json(&Trained { out: &arguments.out, vocab_size, asked: arguments.vocab, hash })?;
        return Ok(Verdict::Success);
    }
    let fewer = if vocab_size < arguments.vocab { " (the text has no more pairs to merge)" } else { "" };
    output::line(&format!("{}: {vocab_size} tokens{fewer}", arguments.out.display()))?;
    Ok(Verdict::Success)
}
