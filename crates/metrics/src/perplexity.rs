//! Perplexity.

/// `exp` of the mean negative log likelihood of a token, in nats; 1 is perfect, the vocabulary's size is a guess.
/// Infinite without tokens.
pub fn perplexity(nll_sum: f64, num_tokens: f64) -> f64 {
    if num_tokens > 0.0 { (nll_sum / num_tokens).exp() } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_a_guess() {
        assert!((super::perplexity(10.0 * 8f64.ln(), 10.0) - 8.0).abs() < 1e-12);
        assert_eq!(super::perplexity(0.0, 3.0), 1.0);
        assert_eq!(super::perplexity(0.0, 0.0), f64::INFINITY);
    }
}
