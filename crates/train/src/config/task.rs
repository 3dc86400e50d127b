//! The key `task`, which stands above all tables: what the model is trained to do. What each task reads is in `data`.

pub use hub::Task;

use super::Name;

impl Name for Task {
    const NAMES: &'static [(&'static str, Task)] = &[
        (Task::CausalLm.name(), Task::CausalLm),
        (Task::MaskedLm.name(), Task::MaskedLm),
        (Task::Classify.name(), Task::Classify),
        (Task::Tag.name(), Task::Tag),
        (Task::Seq2Seq.name(), Task::Seq2Seq),
        (Task::ImageClassify.name(), Task::ImageClassify),
        (Task::Embed.name(), Task::Embed),
    ];
}
