//! The Dockerfile language: text → instructions with spans, and variable expansion.
//!
//! Start at [`fn@parse`]. The text is read in four passes, each in its own file:
//! `directives` (the comments at the very top), `lines` (continuations joined,
//! comments dropped, every character knowing where it came from), `heredoc`
//! (bodies below a line), `parse` (one logical line → one
//! [`Instruction`]). `expand` comes later, when `plan`
//! knows the variables of a stage.
//!
//! The semantics are BuildKit's (frontend 1.26). Nothing here opens files, and
//! nothing is ignored silently: what isn't supported is an [`Error`] that names it.
//! All passes are linear in the text.

pub mod directives;
pub mod duration;
pub mod error;
pub mod excerpt;
pub mod expand;
mod flags;
mod heredoc;
pub mod instruction;
mod lines;
mod lint;
mod parse;
pub mod rules;
pub mod suggest;
mod words;

pub use directives::Check;
pub use directives::is_known_syntax;
pub use error::Error;
pub use expand::ExpandError;
pub use expand::Expanded;
pub use expand::Variables;
pub use expand::expand;
pub use expand::expand_heredoc;
pub use expand::expand_words;
pub use instruction::Dockerfile;
pub use instruction::Instruction;
pub use instruction::InstructionKind;
pub use instruction::Span;
pub use instruction::Warning;
pub use instruction::Word;
pub use parse::Overrides;
pub use parse::parse;
pub use parse::parse_trigger;
pub use parse::parse_with;
