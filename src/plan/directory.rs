//! Paths as instructions write them: joined to a directory, cleaned.

use crate::path::RootPath;

/// `path` seen from `directory`, absolute and clean; `..` stops at the root.
/// `None` if it holds a NUL byte.
pub(super) fn join(directory: &str, path: &str) -> Option<String> {
    let joined = if path.starts_with('/') {
        RootPath::clamped(path.as_bytes())
    } else {
        RootPath::clamped(format!("{directory}/{path}").as_bytes())
    };
    joined.map(|path| path.to_string())
}

/// Like [`join`], but keeps what says "this is a directory": a trailing `/` or
/// `/.`, or a path that is empty or `.`.
pub(super) fn join_destination(directory: &str, path: &str) -> Option<String> {
    let mut joined = join(directory, path)?;
    let is_directory = matches!(path, "" | ".") || path.ends_with('/') || path.ends_with("/.");
    if is_directory && !joined.ends_with('/') {
        joined.push('/');
    }
    Some(joined)
}

/// What Go's `path.Clean` makes of a path that may be relative.
pub(super) fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                None | Some(&"..") if !absolute => parts.push(".."),
                _ => {
                    parts.pop();
                }
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The last component; `/` or `.` if there is none.
pub(super) fn base_name(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_join_and_clean() {
        for (directory, path, expected) in [
            ("/", "a", "/a"),
            ("/w", "a/../b/", "/w/b"),
            ("/w", "/a//b", "/a/b"),
            ("/w", "../../..", "/"),
            ("", "x", "/x"),
            ("/w", "", "/w"),
        ] {
            assert_eq!(join(directory, path).as_deref(), Some(expected), "{directory} {path}");
        }
        assert_eq!(join("/", "a\0"), None);
    }

    #[test]
    fn destinations_keep_what_makes_them_directories() {
        for (directory, path, expected) in [
            ("/w", ".", "/w/"),
            ("/w", "", "/w/"),
            ("/w", "a", "/w/a"),
            ("/w", "a/", "/w/a/"),
            ("/w", "/a/.", "/a/"),
            ("/w", "/", "/"),
            ("/", ".", "/"),
            ("/w", "..", "/"),
        ] {
            assert_eq!(
                join_destination(directory, path).as_deref(),
                Some(expected),
                "{directory} {path}"
            );
        }
    }

    #[test]
    fn clean_is_go_path_clean() {
        for (path, expected) in
            [("", "."), ("/a/../..", "/"), ("a/../../b", "../b"), ("./x/", "x"), ("..", "..")]
        {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!((base_name("/a/b/"), base_name("/"), base_name("")), ("b", "/", "."));
    }
}
