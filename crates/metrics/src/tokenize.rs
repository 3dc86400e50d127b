//! How BLEU cuts a text into words. Scores of different tokenisers cannot be compared.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// A tokeniser of sacrebleu.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tokenizer {
    /// `13a`: that of WMT's `mteval-v13a`, for languages with spaces.
    Mteval13a,
    /// `zh`: each Chinese character by itself, the rest like `13a`.
    Chinese,
    /// `char`: each character by itself.
    Character,
    /// `none`: white space alone.
    WhiteSpace,
}

impl Tokenizer {
    /// The name that sacrebleu uses.
    pub const fn name(self) -> &'static str {
        match self {
            Tokenizer::Mteval13a => "13a",
            Tokenizer::Chinese => "zh",
            Tokenizer::Character => "char",
            Tokenizer::WhiteSpace => "none",
        }
    }

    /// The words of a text.
    pub fn words(self, text: &str) -> Vec<String> {
        let text = text.trim_end_matches(is_space);
        let cut: Cow<'_, str> = match self {
            Tokenizer::Mteval13a => mteval(text).into(),
            Tokenizer::Chinese => chinese(text).into(),
            Tokenizer::Character => {
                return text.chars().filter(|c| !is_space(*c)).map(String::from).collect();
            }
            Tokenizer::WhiteSpace => text.into(),
        };
        cut.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }
}

/// White space as Python sees it: Unicode's, and four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn mteval(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    punctuation(&format!(" {text} "))
}

/// Sets punctuation apart, but not the marks inside of numbers.
fn punctuation(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([\{-~\[-` -&\(-\+:-@/])", " $1 "),
            // a period or comma, unless after a digit; unless before one
            (r"([^0-9])([\.,])", "$1 $2 "),
            (r"([\.,])([^0-9])", " $1 $2"),
            // a dash after a digit
            (r"([0-9])(-)", "$1 $2 "),
        ]
        .map(|(rule, put)| (Regex::new(rule).expect("a constant expression"), put))
    });
    RULES.iter().fold(text.to_owned(), |text, (rule, put)| rule.replace_all(&text, *put).into_owned())
}

fn chinese(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() * 2);
    for c in text.trim_matches(is_space).chars() {
        if is_chinese(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    punctuation(&spaced)
}

/// What sacrebleu's `zh` takes for Chinese. Two of its ranges were meant to lie beyond the first plane, but Python
/// reads them as `2001..=2A6D` and `2F81..=2FA1`; scores are compared with sacrebleu's, so this reads them so too.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{3400}'..='\u{4db5}'
        | '\u{4e00}'..='\u{9fbb}'
        | '\u{f900}'..='\u{fa2d}'
        | '\u{fa30}'..='\u{fa6a}'
        | '\u{fa70}'..='\u{fad9}'
        | '\u{2001}'..='\u{2a6d}'
        | '\u{2f81}'..='\u{2fa1}'
        | '\u{ff00}'..='\u{ffef}'
        | '\u{2e80}'..='\u{2eff}'
        | '\u{3000}'..='\u{303f}'
        | '\u{31c0}'..='\u{31ef}'
        | '\u{2f00}'..='\u{2fdf}'
        | '\u{2ff0}'..='\u{2fff}'
        | '\u{3100}'..='\u{312f}'
        | '\u{31a0}'..='\u{31bf}'
        | '\u{fe10}'..='\u{fe1f}'
        | '\u{fe30}'..='\u{fe4f}'
        | '\u{3200}'..='\u{32ff}'
        | '\u{3300}'..='\u{33ff}')
}
