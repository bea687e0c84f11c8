//! The variables that a point in a Dockerfile sees.

use crate::dockerfile::expand::Variables;

/// ENV and ARG values in force, and the ARGs declared so far. Child stages inherit
/// it from a base stage.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scope {
    /// In the order of the last assignment: a name that is set again moves to the end.
    environment: Vec<(String, String)>,
    /// Every ARG in scope in order, with the value it got.
    args: Vec<(String, Option<String>)>,
    /// Whether this file has set a WORKDIR yet.
    pub(super) workdir_set: bool,
}

impl Scope {
    /// The value of `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values, in the order of their last assignment.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Sets `name`, over whatever it was.
    pub fn set(&mut self, name: &str, value: String) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value));
    }

    /// Notes that ARG `name` was declared.
    pub(super) fn declare(&mut self, name: &str, value: Option<String>) {
        self.args.push((name.to_owned(), value));
    }

    /// Whether ARG `name` was declared.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.args.iter().any(|(known, _)| known == name)
    }

    /// Declared ARGs as `(name, value)`, each once, in the order of their first
    /// declaration, with the value in force now (an ENV of the same name counts).
    pub(super) fn declared(&self) -> Vec<(&str, &str)> {
        let mut folded: Vec<(&str, &str)> = Vec::new();
        for (name, value) in &self.args {
            let value = self.get(name).or(value.as_deref()).unwrap_or_default();
            match folded.iter_mut().find(|(known, _)| known == name) {
                Some(entry) => entry.1 = value,
                None => folded.push((name, value)),
            }
        }
        folded
    }

    /// Every name with a value.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.environment.iter().map(|(name, _)| name.as_str())
    }
}

impl Variables for Scope {
    fn get(&self, name: &str) -> Option<String> {
        Scope::get(self, name).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_set_again_moves_to_the_end() {
        let mut scope = Scope::default();
        scope.set("A", "1".to_owned());
        scope.set("B", "2".to_owned());
        scope.set("A", "3".to_owned());
        let names: Vec<_> = scope.names().collect();
        assert_eq!(names, ["B", "A"]);
        assert_eq!(scope.get("A"), Some("3"));
    }

    #[test]
    fn declared_folds_repetitions_and_shows_the_value_in_force() {
        let mut scope = Scope::default();
        scope.declare("A", Some("1".to_owned()));
        scope.declare("B", None);
        scope.declare("A", Some("2".to_owned()));
        scope.set("A", "env".to_owned());
        assert_eq!(scope.declared(), [("A", "env"), ("B", "")]);
    }
}
