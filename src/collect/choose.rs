//! Which contents go. Pure: no file is touched here.

use super::Limits;
use super::inventory::Content;
use super::inventory::Kind;

/// Seconds for which contents without a record are left alone. Leases protect what
/// a build is working on; this is for file systems that don't lock across hosts.
const GRACE: i64 = 3600;

/// Seconds for which damaged files can be looked at.
const ASIDE: i64 = 24 * 3600;

/// Seconds for which the beginning of a blob waits for somebody to go on with it.
const PARTIAL: i64 = 7 * 24 * 3600;

/// Why something goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nothing names it.
    Garbage,
    /// It wasn't used for longer than the age limit.
    Expired,
    /// It was used longest ago, and there was too much.
    LeastRecentlyUsed,
    /// Somebody asked for it.
    Asked,
}

impl Why {
    /// A few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Expired => "expired",
            Self::LeastRecentlyUsed => "least recently used",
            Self::Asked => "asked for",
        }
    }
}

/// A content that goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chosen {
    /// Its place in the list.
    pub(super) at: usize,
    pub(super) why: Why,
}

/// Chooses, in the order in which they should go. `other` are the bytes of what
/// stays in any case; `now` in seconds since 1970.
pub(super) fn choose(contents: &[Content], other: u64, limits: &Limits, now: i64) -> Vec<Chosen> {
    let ttl = limits.ttl_seconds();
    let mut chosen: Vec<Chosen> = Vec::new();
    let mut rest: Vec<usize> = Vec::new();
    for (at, content) in contents.iter().enumerate() {
        let named = matches!(content.kind, Kind::Blob | Kind::Layer);
        let garbage = match content.kind {
            Kind::Aside => content.used + ASIDE <= now,
            Kind::Partial => content.used + PARTIAL <= now,
            _ if content.incomplete => content.used + GRACE <= now,
            _ => named && !content.wanted && content.used_with + GRACE <= now,
        };
        let old = ttl.is_some_and(|ttl| content.used_with.saturating_add_unsigned(ttl) <= now);
        match (garbage, old) {
            (true, _) => chosen.push(Chosen { at, why: Why::Garbage }),
            (_, true) => chosen.push(Chosen { at, why: Why::Expired }),
            _ => rest.push(at),
        }
    }
    if let Some(max_size) = limits.max_size {
        let mut size = other + rest.iter().map(|&at| contents[at].bytes).sum::<u64>();
        // The kinds are in the order in which they are missed least.
        let order = |at: &usize| {
            let content = &contents[*at];
            let damaged = content.kind == Kind::Aside;
            (!damaged, content.used, content.kind, content.name.clone())
        };
        rest.sort_by_cached_key(order);
        for at in rest {
            if size <= max_size {
                break;
            }
            size -= contents[at].bytes;
            chosen.push(Chosen { at, why: Why::LeastRecentlyUsed });
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn content(kind: Kind, name: &str, bytes: u64, ago: i64, wanted: bool) -> Content {
        let used = NOW - ago;
        let name = name.to_owned();
        Content { kind, id: None, name, bytes, used, used_with: used, wanted, incomplete: false }
    }

    fn chosen(contents: &[Content], max_size: Option<u64>, ttl: Option<u64>) -> Vec<(String, Why)> {
        let limits = Limits { max_size, ttl: ttl.map(Duration::from_secs) };
        choose(contents, 100, &limits, NOW)
            .iter()
            .map(|chosen| (contents[chosen.at].name.clone(), chosen.why))
            .collect()
    }

    #[test]
    fn what_nothing_names_goes_after_the_grace_and_the_rest_stays() {
        let contents = [
            content(Kind::Blob, "named", 1, 1_000_000, true),
            content(Kind::Blob, "fresh", 1, 3_599, false),
            content(Kind::Blob, "orphan", 1, 3_600, false),
            content(Kind::Mount, "mount", 1, 1_000_000, false),
            content(Kind::Memory, "memory", 1, 1_000_000, false),
            content(Kind::Aside, "today", 1, 3_600, false),
            content(Kind::Aside, "yesterday", 1, 86_400, false),
            content(Kind::Partial, "begun", 1, 86_400, false),
            content(Kind::Partial, "given up", 1, 7 * 86_400, false),
            Content { incomplete: true, ..content(Kind::Layer, "half", 1, 3_600, true) },
        ];
        let names: Vec<_> = chosen(&contents, None, None).into_iter().map(|one| one.0).collect();
        assert_eq!(names, ["orphan", "yesterday", "given up", "half"]);
    }

    #[test]
    fn what_was_not_used_for_the_age_limit_expires() {
        let contents = [
            content(Kind::Blob, "old", 1, 100, true),
            content(Kind::Blob, "young", 1, 99, true),
            content(Kind::Mount, "mount", 1, 100, false),
            Content { used_with: NOW, ..content(Kind::Layer, "of a base", 1, 1_000, true) },
        ];
        let expected = [("old".to_owned(), Why::Expired), ("mount".to_owned(), Why::Expired)];
        assert_eq!(chosen(&contents, None, Some(100)), expected);
        assert_eq!(chosen(&contents, None, Some(u64::MAX)), []);
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_fits() {
        let contents = [
            content(Kind::Blob, "blob", 40, 500, true),
            content(Kind::Layer, "layer", 40, 500, true),
            content(Kind::Blob, "newest", 40, 0, true),
            content(Kind::Blob, "oldest", 40, 1_000, true),
            content(Kind::Aside, "damaged", 40, 10, false),
        ];
        let names = |max_size| -> Vec<String> {
            chosen(&contents, Some(max_size), None).into_iter().map(|one| one.0).collect()
        };
        assert_eq!(names(300), [""; 0]);
        assert_eq!(names(299), ["damaged"]);
        assert_eq!(names(200), ["damaged", "oldest", "layer"]);
        assert_eq!(names(0), ["damaged", "oldest", "layer", "blob", "newest"]);
    }
}
