//! `--build-context NAME=…`: names that stand for something else than what the
//! Dockerfile would make of them.
//!
//! As in BuildKit a name replaces the stage of that name, with all of its instructions,
//! and otherwise whatever image it would mean in FROM, `--from` and `from=`.

use std::collections::BTreeMap;

use crate::oci::reference::Reference;

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NamedContext {
    /// An image: its reference, or a layout (`oci-layout://DIR:TAG`).
    Image(String),
    /// Files: a directory, a repository, an archive. The build knows where they are.
    Files,
}

/// All of them, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contexts(BTreeMap<String, NamedContext>);

impl Contexts {
    /// Adds one; the last of a name counts.
    pub fn insert(&mut self, name: &str, context: NamedContext) {
        self.0.insert(normal(name), context);
    }

    /// What `name` stands for, with the name that it was given under.
    pub fn find(&self, name: &str) -> Option<(&str, &NamedContext)> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get_key_value(&normal(name)).map(|(name, context)| (name.as_str(), context))
    }
}

/// One spelling for `debian`, `Debian`, `debian:latest` and `docker.io/library/debian`.
pub fn normal(name: &str) -> String {
    let lower = name.to_lowercase();
    match lower.parse::<Reference>() {
        Ok(reference) => {
            let text = reference.familiar();
            text.strip_suffix(":latest").unwrap_or(&text).to_owned()
        }
        Err(_) => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_an_image_are_one_name() {
        let mut contexts = Contexts::default();
        contexts.insert("Debian", NamedContext::Files);
        for name in ["debian", "debian:latest", "docker.io/library/debian", "DEBIAN"] {
            assert_eq!(contexts.find(name), Some(("debian", &NamedContext::Files)), "{name}");
        }
        assert_eq!(contexts.find("debian:12"), None);
        assert_eq!(contexts.find("other"), None);
    }
}
