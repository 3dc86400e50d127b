//! Values that are one of a few names, and the nearest name to a misspelt one. No value's meaning.

/// A value written as one of a few names.
pub trait Name: Sized + Copy + 'static {
    /// Every value with its name.
    const NAMES: &'static [(&'static str, Self)];

    /// The value of that name.
    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// The names, in order.
    fn known() -> Vec<&'static str> {
        Self::NAMES.iter().map(|(name, _)| *name).collect()
    }
}

/// Declares an enum whose values have names in configurations.
macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $value,)* }

        impl $crate::config::Name for $name {
            const NAMES: &'static [(&'static str, $name)] = &[$(($text, $name::$value),)*];
        }

        impl $name {
            /// The name in configurations.
            pub fn name(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.name())
            }
        }
    };
}
pub(super) use named;

/// The candidate with the least edits to `name`; the first of equals.
pub(super) fn nearest(name: &str, candidates: impl IntoIterator<Item = impl Into<String>>) -> String {
    // Long garbage is as far from one name as from another, and not worth the quadratic time.
    let name: String = name.chars().take(64).collect();
    let candidates = candidates.into_iter().map(Into::into);
    candidates.min_by_key(|known: &String| strsim::damerau_levenshtein(&name, known)).unwrap_or_default()
}
