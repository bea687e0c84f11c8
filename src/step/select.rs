//! What a COPY or ADD takes: sources and patterns resolved to nodes of a tree.
//!
//! The selection is made once and used twice: its digest is the content part of
//! the step's key, and it is what gets copied when the step runs.
//! Rules: reference of the Dockerfile language, COPY and ADD; pinned in
//! `step/tests.rs`.

mod listing;

use std::collections::HashMap;
use std::num::NonZeroUsize;

use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

pub use listing::Listed;

use super::Error;
use super::source::Source;
use crate::ignore;
use crate::ignore::Matcher;
use crate::path::Name;
use crate::path::RootPath;
use crate::plan::step::CopySource;
use crate::plan::step::CopyStep;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Tree;
use crate::tree::resolve::resolve;

/// What a COPY takes, in the order of its sources.
#[derive(Debug, Default)]
pub struct Selection {
    /// The items.
    pub items: Vec<Item>,
}

/// One thing to copy.
#[derive(Debug)]
pub enum Item {
    /// A file made of a heredoc.
    Inline {
        /// File name.
        name: Name,
        /// Bytes.
        body: String,
    },
    /// A file, or the contents of a directory.
    Whole {
        /// Path as named, wildcards replaced; its last component names the copy.
        named: RootPath,
        /// The node, links followed.
        node: NodeId,
    },
    /// `--parents`: one node with its directories below the pivot kept. Parents
    /// come first; directories are taken without their contents.
    Kept {
        /// Path below the pivot.
        relative: RootPath,
        /// The node, links not followed.
        node: NodeId,
    },
}

/// Selects what `step` takes from `source`.
///
/// # Errors
/// [`Error::NotFound`] for a source without wildcards that isn't there,
/// [`Error::Pattern`], and those of reading the tree.
pub fn select(source: &Source<'_>, step: &CopyStep) -> Result<Selection, Error> {
    let mut selection = Selection::default();
    for item in &step.sources {
        match item {
            CopySource::Inline { name, body } => {
                let name = Name::new(name.as_bytes()).ok_or_else(|| Error::Pattern {
                    pattern: name.clone(),
                    reason: "a heredoc's name must be a file name".to_owned(),
                })?;
                selection.items.push(Item::Inline { name, body: body.clone() });
            }
            CopySource::Path(path) if step.parents => {
                keep_parents(source, path, &mut selection.items)?;
            }
            CopySource::Path(path) => whole(source, path, &mut selection.items)?,
            // Not in any tree: whoever fetches them selects them.
            CopySource::Http { .. } | CopySource::Git { .. } => {}
        }
    }
    Ok(selection)
}

fn clamped(path: &str) -> Result<RootPath, Error> {
    RootPath::clamped(path.as_bytes()).ok_or_else(|| Error::Pattern {
        pattern: path.to_owned(),
        reason: "it holds a NUL byte".to_owned(),
    })
}

fn not_found(source: &Source<'_>, path: &RootPath) -> Error {
    let hint = match source {
        Source::Context(tree) if tree.is_excluded(path) => {
            " (an ignore rule excludes it)".to_owned()
        }
        _ => String::new(),
    };
    Error::NotFound { path: path.to_string(), whose: source.whose().to_owned(), hint }
}

fn whole(source: &Source<'_>, path: &str, items: &mut Vec<Item>) -> Result<(), Error> {
    let tree = source.tree();
    let named = clamped(path)?;
    if !ignore::has_wildcard(path) {
        let found = resolve(tree, &named, true).map_err(Error::io("look up", &named))?;
        let node = found.node.ok_or_else(|| not_found(source, &named))?;
        items.push(Item::Whole { named, node });
        return Ok(());
    }
    for named in matches(tree, &named)? {
        let found = resolve(tree, &named, true).map_err(Error::io("look up", &named))?;
        let node = found.node.ok_or_else(|| not_found(source, &named))?;
        items.push(Item::Whole { named, node });
    }
    Ok(())
}

/// The paths that match `pattern` component by component, sorted. Links are
/// followed in the part before the first wildcard only.
fn matches(tree: &dyn Tree, pattern: &RootPath) -> Result<Vec<RootPath>, Error> {
    let mut found = vec![RootPath::root()];
    let mut fixed = true;
    for part in pattern.components() {
        let text = String::from_utf8_lossy(part).into_owned();
        let wild = ignore::has_wildcard(&text);
        fixed &= !wild;
        let mut next = Vec::new();
        for directory in found {
            let resolved =
                resolve(tree, &directory, fixed).map_err(Error::io("look up", &directory))?;
            let Some(node) = resolved.node else { continue };
            if !wild {
                let follow = fixed.then(|| Name::new(part)).flatten();
                let child = tree.child(node, part).map_err(Error::io("look up", &directory))?;
                if let Some(name) = follow.or_else(|| child.and_then(|_| Name::new(part))) {
                    next.push(directory.join(&name));
                }
                continue;
            }
            if !tree.stat(node).map_err(Error::io("look up", &directory))?.is_directory() {
                continue;
            }
            let children = tree.children(node).map_err(Error::io("list", &directory))?;
            for (name, _) in children {
                let single = RootPath::root().join(&name);
                let matched = ignore::path_match(&text, &single).map_err(|error| {
                    Error::Pattern { pattern: pattern.to_string(), reason: error.to_string() }
                })?;
                if matched {
                    next.push(directory.join(&name));
                }
            }
        }
        found = next;
    }
    Ok(found)
}

fn keep_parents(source: &Source<'_>, path: &str, items: &mut Vec<Item>) -> Result<(), Error> {
    let tree = source.tree();
    let (pivot, rest) = match path.split_once("/./") {
        Some((pivot, rest)) => (clamped(pivot)?, rest),
        None => (RootPath::root(), path.strip_prefix("./").unwrap_or(path)),
    };
    let found = resolve(tree, &pivot, true).map_err(Error::io("look up", &pivot))?;
    let base = found.node.ok_or_else(|| not_found(source, &pivot))?;
    let wanted = clamped(rest)?;
    if !ignore::has_wildcard(rest) {
        let whole = found.path.join_path(&wanted);
        let there = resolve(tree, &whole, true).map_err(Error::io("look up", &whole))?;
        if there.node.is_none() {
            return Err(not_found(source, &pivot.join_path(&wanted)));
        }
    }
    let pattern = String::from_utf8_lossy(wanted.as_bytes()).into_owned();
    let matcher = Matcher::new([pattern.as_str()])
        .map_err(|error| Error::Pattern { pattern: path.to_owned(), reason: error.to_string() })?;
    let everything = wanted.is_root();
    // Directories wait until something in them matches.
    let mut waiting: Vec<(RootPath, NodeId)> = Vec::new();
    let mut visit = |relative: &RootPath, node: NodeId| {
        while waiting.last().is_some_and(|(path, _)| !relative.starts_with(path)) {
            waiting.pop();
        }
        if everything || matcher.excludes(relative) {
            for (relative, node) in waiting.drain(..) {
                items.push(Item::Kept { relative, node });
            }
            items.push(Item::Kept { relative: relative.clone(), node });
        } else {
            waiting.push((relative.clone(), node));
        }
    };
    walk(tree, base, &RootPath::root(), &mut visit).map_err(Error::io("list", &pivot))?;
    items.dedup_by(|left, right| match (left, right) {
        (Item::Kept { relative: one, .. }, Item::Kept { relative: two, .. }) => one == two,
        _ => false,
    });
    Ok(())
}

/// Calls `visit` for everything below `directory`, parents first, in path order.
pub(crate) fn walk(
    tree: &dyn Tree,
    directory: NodeId,
    at: &RootPath,
    visit: &mut dyn FnMut(&RootPath, NodeId),
) -> std::io::Result<()> {
    let mut open = vec![(at.clone(), tree.children(directory)?.into_iter())];
    while let Some((path, children)) = open.last_mut() {
        let Some((name, node)) = children.next() else {
            open.pop();
            continue;
        };
        let path = path.join(&name);
        visit(&path, node);
        if tree.stat(node)?.is_directory() {
            let children = tree.children(node)?.into_iter();
            open.push((path, children));
        }
    }
    Ok(())
}

/// Compiles `--exclude` patterns.
///
/// # Errors
/// [`Error::Pattern`].
pub fn excludes(step: &CopyStep) -> Result<Option<Matcher>, Error> {
    if step.exclude.is_empty() {
        return Ok(None);
    }
    Matcher::new(&step.exclude).map(Some).map_err(|error| Error::Pattern {
        pattern: step.exclude.join(", "),
        reason: error.to_string(),
    })
}

impl Selection {
    /// Digest of everything that decides what the copy holds: names, types, modes,
    /// owners (unless reset), link targets, capabilities and contents; no times, no
    /// order in a directory, nothing that `--exclude` leaves out.
    ///
    /// # Errors
    /// Those of reading the source.
    pub fn digest(
        &self,
        source: &Source<'_>,
        exclude: Option<&Matcher>,
        threads: NonZeroUsize,
    ) -> Result<Key, Error> {
        for item in &self.items {
            if let Item::Whole { named, node } = item {
                source.scan(*node, threads).map_err(Error::io("list", named))?;
            }
        }
        let mut files = Vec::new();
        self.each(source, exclude, &mut |_, _, node| files.push(node))?;
        let tree = source.tree();
        files.retain(|&node| tree.stat(node).is_ok_and(|stat| stat.kind == Kind::File));
        source.prefetch(&files, threads).map_err(Error::io("read", source.whose()))?;

        let mut hasher = KeyHasher::new("selection");
        let mut failed = None;
        // Names of one file are one file in the layer too. How many names it has
        // elsewhere doesn't matter.
        let mut linked = HashMap::new();
        let mut number = 0_u64;
        self.each(source, exclude, &mut |item, path, node| {
            number += 1;
            if failed.is_some() {
                return;
            }
            match hash_node(&mut hasher, source, item, path, node) {
                Err(error) => failed = Some(Error::io("read", path)(error)),
                Ok(stat) if stat.links > 1 && stat.kind == Kind::File => {
                    let first = *linked.entry(node).or_insert(number);
                    if first != number {
                        hasher.number("same file as", first);
                    }
                }
                Ok(_) => {}
            }
        })?;
        for item in &self.items {
            if let Item::Inline { name, body } = item {
                hasher.field("inline name", name.as_bytes());
                hasher.field("inline body", body.as_bytes());
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(hasher.finish()),
        }
    }

    /// [`digest`](Self::digest) of what a mount shows: there the top directory is seen,
    /// too, unless it is that of the build context, whose mode is the checkout's.
    ///
    /// # Errors
    /// As for `digest`.
    pub fn digest_of_mount(
        &self,
        source: &Source<'_>,
        threads: NonZeroUsize,
    ) -> Result<Key, Error> {
        let content = self.digest(source, None, threads)?;
        let Some(top) = self.mounted_top(source)? else { return Ok(content) };
        let mut hasher = KeyHasher::new("mounted directory");
        hasher.key("content", &content);
        hasher.number("mode", u64::from(top.mode));
        if !source.resets_owner() {
            hasher.number("uid", u64::from(top.uid));
            hasher.number("gid", u64::from(top.gid));
        }
        Ok(hasher.finish())
    }

    /// The directory at the top of a mount, if its mode is seen.
    fn mounted_top(&self, source: &Source<'_>) -> Result<Option<Stat>, Error> {
        let [Item::Whole { named, node }] = self.items.as_slice() else { return Ok(None) };
        let stat = source.tree().stat(*node).map_err(Error::io("look up", named))?;
        let is_checkout = source.resets_owner() && named.is_root();
        Ok((stat.is_directory() && !is_checkout).then_some(stat))
    }

    /// Calls `visit` with item number, path within the item and node of all that is
    /// taken, parents first.
    fn each(
        &self,
        source: &Source<'_>,
        exclude: Option<&Matcher>,
        visit: &mut dyn FnMut(usize, &RootPath, NodeId),
    ) -> Result<(), Error> {
        let tree = source.tree();
        for (number, item) in self.items.iter().enumerate() {
            match item {
                Item::Inline { .. } => {}
                Item::Kept { relative, node } => {
                    if !exclude.is_some_and(|matcher| matcher.excludes(relative)) {
                        visit(number, relative, *node);
                    }
                }
                Item::Whole { named, node } => {
                    let stat = tree.stat(*node).map_err(Error::io("look up", named))?;
                    let own = named.file_name().map(|name| RootPath::root().join(&name));
                    let own = own.unwrap_or_default();
                    if !stat.is_directory() {
                        if !exclude.is_some_and(|matcher| matcher.excludes(&own)) {
                            visit(number, &own, *node);
                        }
                        continue;
                    }
                    visit(number, &RootPath::root(), *node);
                    walk(tree, *node, &RootPath::root(), &mut |path, node| {
                        if !exclude.is_some_and(|matcher| matcher.excludes(path)) {
                            visit(number, path, node);
                        }
                    })
                    .map_err(Error::io("list", named))?;
                }
            }
        }
        Ok(())
    }
}

fn hash_node(
    hasher: &mut KeyHasher,
    source: &Source<'_>,
    item: usize,
    path: &RootPath,
    node: NodeId,
) -> std::io::Result<Stat> {
    let stat = source.tree().stat(node)?;
    hasher.number("item", item as u64);
    hasher.field("path", path.as_bytes());
    hasher.number("kind", stat.kind as u64);
    // The top directory's own mode doesn't reach the image: its copy is 0755.
    if !(path.is_root() && stat.is_directory()) {
        hasher.number("mode", u64::from(stat.mode));
        if !source.resets_owner() {
            hasher.number("uid", u64::from(stat.uid));
            hasher.number("gid", u64::from(stat.gid));
        }
    }
    hash_what(hasher, source, node, &stat)?;
    Ok(stat)
}

/// Feeds what is at `node` apart from its name, mode and owner.
fn hash_what(
    hasher: &mut KeyHasher,
    source: &Source<'_>,
    node: NodeId,
    stat: &Stat,
) -> std::io::Result<()> {
    let tree = source.tree();
    match stat.kind {
        Kind::File => {
            hasher.field("content", &source.digest(node)?);
            if let Some(capability) = source.capability(node)? {
                hasher.field("capability", &capability);
            }
        }
        Kind::Symlink => {
            hasher.field("target", &tree.link_target(node)?);
        }
        Kind::CharDevice | Kind::BlockDevice => {
            hasher.number("major", u64::from(stat.device.major));
            hasher.number("minor", u64::from(stat.device.minor));
        }
        Kind::Directory | Kind::Fifo | Kind::Socket => {}
    }
    Ok(())
}
