//! What a model is asked to do: it decides the head, and so which tensors a checkpoint must have.

/// A task, by the name that configurations and flags use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Predict the next token.
    CausalLm,
    /// Predict masked tokens.
    MaskedLm,
    /// One label for a sequence.
    Classify,
    /// One label for each token.
    Tag,
    /// Text to text.
    Seq2Seq,
    /// One label for an image.
    ImageClassify,
    /// A vector for a sequence.
    Embed,
}

impl Task {
    /// All tasks.
    pub const ALL: [Task; 7] = [
        Task::CausalLm,
        Task::MaskedLm,
        Task::Classify,
        Task::Tag,
        Task::Seq2Seq,
        Task::ImageClassify,
        Task::Embed,
    ];

    /// The name in configurations and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Task::CausalLm => "causal-lm",
            Task::MaskedLm => "masked-lm",
            Task::Classify => "classify",
            Task::Tag => "tag",
            Task::Seq2Seq => "seq2seq",
            Task::ImageClassify => "image-classify",
            Task::Embed => "embed",
        }
    }

    /// The task called `name`.
    pub fn from_name(name: &str) -> Option<Task> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// Whether the head has one output per label.
    pub const fn has_labels(self) -> bool {
        matches!(self, Task::Classify | Task::Tag | Task::ImageClassify)
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
