//! The mirror on a plain directory.
