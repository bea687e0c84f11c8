//! "Did you mean …?" in errors.

use crate::dockerfile::Error;
use crate::dockerfile::suggest;

/// A hint that names the option nearest to `word`, if one is near enough.
pub(super) fn hint<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, options).map(|option| format!("did you mean `{option}`?"))
}

/// See [`suggest::nearest`].
pub(super) fn nearest<'a>(
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let options: Vec<&str> = options.into_iter().collect();
    suggest::nearest(word, &options)
}

/// The error with the hint, if there is one.
pub(super) fn advise(error: Error, hint: Option<String>) -> Error {
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
