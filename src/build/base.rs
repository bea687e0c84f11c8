//! Base images: resolved to manifest and config at once, their layers fetched only
//! when something needs them.
//!
//! A layer is streamed once: compressed bytes go to the blob store while they are
//! inflated, hashed and indexed. Nothing is unpacked. A base whose manifest,
//! config and layers the cache holds costs one request: which digest its tag has.

use std::collections::BTreeMap;
use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::Error;
use super::Progress;
use super::client::LazyClient;
use super::progress::Observer;
use crate::layer;
use crate::layer::ahead::ahead;
use crate::layer::decompress;
use crate::layout::Layout;
use crate::oci::config::ImageConfig;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::manifest::Document;
use crate::oci::manifest::parse_manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::reference::layout_place;
use crate::registry::Client;
use crate::store::Store;

/// Largest manifest or config that is accepted, in bytes.
const DOCUMENT_LIMIT: u64 = 8 << 20;

/// Where an image's blobs come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A registry.
    Registry(Reference),
    /// An OCI image layout on disk.
    Layout(PathBuf),
}

/// One layer of a base image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseLayer {
    /// The compressed blob.
    pub descriptor: Descriptor,
    /// The uncompressed tar.
    pub diff_id: DiffId,
}

/// A resolved base image.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its config.
    pub config: ImageConfig,
    /// Its layers, bottom first.
    pub layers: Vec<BaseLayer>,
    /// Media type of its manifest.
    pub media_type: String,
    /// Of its manifest.
    pub digest: Digest,
    /// Where its blobs are.
    pub origin: Origin,
}

impl Base {
    /// What tells this image from another of the same name: the digest of its
    /// manifest, or, of one out of a layout, of its topmost layer.
    pub fn identity(&self) -> String {
        match &self.origin {
            Origin::Registry(reference) => reference.digest().map(|digest| digest.to_string()),
            Origin::Layout(_) => None,
        }
        .or_else(|| self.layers.last().map(|layer| layer.diff_id.to_string()))
        .unwrap_or_default()
    }
}

/// How base images are reached.
pub struct Bases {
    /// Made on first use: a build from `scratch` needs no registry.
    pub client: Arc<LazyClient>,
    /// Where everything fetched is kept.
    pub store: Arc<Store>,
    /// What was resolved by this build: a tag means one thing from its start to its end.
    resolved: Mutex<BTreeMap<(String, String), Arc<Base>>>,
}

impl Bases {
    /// Nothing is asked for before the first image.
    pub fn new(client: Arc<LazyClient>, store: Arc<Store>) -> Self {
        Self { client, store, resolved: Mutex::default() }
    }

    /// Resolves what `FROM name` means for `platform`, once in a build.
    ///
    /// # Errors
    /// An image that isn't there, isn't allowed, or isn't what its digest says.
    pub fn resolve(&self, name: &str, platform: &Platform) -> Result<Arc<Base>, Error> {
        let id = (name.to_owned(), platform.to_string());
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = resolved.get(&id) {
            return Ok(Arc::clone(base));
        }
        let base = Arc::new(match layout_place(name) {
            Some(place) => self.layout_image(name, place, platform)?,
            None => self.registry_image(name, platform)?,
        });
        resolved.insert(id, Arc::clone(&base));
        Ok(base)
    }

    /// What was resolved for `platform` so far, by name.
    pub fn resolved(&self, platform: &Platform) -> Vec<(String, Arc<Base>)> {
        let platform = platform.to_string();
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved
            .iter()
            .filter(|((_, of), _)| *of == platform)
            .map(|((name, _), base)| (name.clone(), Arc::clone(base)))
            .collect()
    }

    fn registry_image(&self, name: &str, platform: &Platform) -> Result<Base, Error> {
        let reference: Reference = name.parse().map_err(|error| Error::BadReference {
            reference: name.to_owned(),
            reason: format!("{error}"),
        })?;
        let client = self.client.get()?;
        let (digest, media_type) = match reference.digest() {
            Some(digest) => (digest, None),
            None => {
                let resolved = client.resolve(&reference)?;
                (resolved.digest, Some(resolved.media_type))
            }
        };
        let mut pinned = reference.with_digest(digest);
        let (mut bytes, mut kind) = self.manifest(client, &pinned, digest, media_type)?;
        if media_type::is_index(&kind) {
            let Document::Index(index) = parse_manifest(&bytes, &kind)? else {
                return Err(Error::not_an_image(name, &kind));
            };
            let chosen = index.select(platform).ok_or_else(|| Error::NoPlatform {
                image: name.to_owned(),
                platform: platform.to_string(),
                available: offered(&index.platforms()),
            })?;
            pinned = reference.with_digest(chosen.digest);
            (bytes, kind) =
                self.manifest(client, &pinned, chosen.digest, Some(chosen.media_type.clone()))?;
        }
        let read = |descriptor: &Descriptor| -> Result<Vec<u8>, Error> {
            if let Some(bytes) = self.stored(&descriptor.digest)? {
                return Ok(bytes);
            }
            let bytes = client.blob_bytes(&pinned, descriptor)?;
            self.store.put_blob(&bytes)?;
            Ok(bytes)
        };
        assemble(name, &bytes, &kind, &read, Origin::Registry(pinned.clone()))
    }

    /// A manifest from the store or, verified, from the registry.
    fn manifest(
        &self,
        client: &Client,
        pinned: &Reference,
        digest: Digest,
        media_type: Option<String>,
    ) -> Result<(Vec<u8>, String), Error> {
        if let Some(bytes) = self.stored(&digest)? {
            return Ok((bytes, media_type.unwrap_or_default()));
        }
        let fetched = client.manifest(pinned)?;
        self.store.put_blob(&fetched.bytes)?;
        Ok((fetched.bytes, fetched.media_type))
    }

    fn stored(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.store.read_small_blob(digest, DOCUMENT_LIMIT)?)
    }

    fn layout_image(&self, name: &str, place: &str, platform: &Platform) -> Result<Base, Error> {
        let (directory, reference) = split_layout(place);
        let layout = Layout::open(&directory)?;
        let image = layout.image(reference.as_deref(), platform)?;
        let read = |descriptor: &Descriptor| -> Result<Vec<u8>, Error> {
            Ok(layout.document(descriptor)?)
        };
        let kind = image.manifest.media_type;
        assemble(name, &image.manifest_bytes, &kind, &read, Origin::Layout(directory))
    }

    /// Makes sure that the layer is in the store, uncompressed and indexed.
    ///
    /// # Errors
    /// Those of the registry, of a damaged layer, and of the disk.
    pub fn ensure_layer(
        &self,
        base: &Base,
        layer: &BaseLayer,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        if self.store.layer(&layer.diff_id)?.is_some() {
            return Ok(());
        }
        if let Some(file) = self.store.open_blob(&layer.descriptor.digest)? {
            match index_layer(&self.store, layer, file) {
                // Damaged in a way that its seal didn't tell: it is fetched anew.
                Err(_) if !self.store.has_sound_blob(&layer.descriptor.digest)? => {}
                other => return other,
            }
        }
        observer.observe(Progress::Note(format!(
            "pulling {} ({} bytes)",
            layer.descriptor.digest, layer.descriptor.size
        )));
        let mut blob = self.store.blob_writer()?;
        let source = self.open(base, &layer.descriptor)?;
        index_layer(&self.store, layer, Keep::new(source, &mut blob))?;
        blob.commit(Some(&layer.descriptor.digest))?;
        Ok(())
    }

    /// Brings the compressed blob of a registry's image into the store, going on where
    /// somebody stopped; of one process or several at once, one does it. Unlike
    /// [`Bases::ensure_layer`] it reads the blob again to index it, so it is for those
    /// whom nobody waits for.
    ///
    /// # Errors
    /// As there.
    pub fn fetch_resumably(
        &self,
        base: &Base,
        layer: &BaseLayer,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let Origin::Registry(reference) = &base.origin else { return Ok(()) };
        let descriptor = &layer.descriptor;
        let is_here = || self.store.has_blob(&descriptor.digest, Some(descriptor.size));
        if is_here()? {
            return Ok(());
        }
        loop {
            let mut partial = self.store.partial_blob(&descriptor.digest)?;
            if is_here()? {
                partial.discard();
                return Ok(());
            }
            let begun = partial.length();
            let from = if begun > 0 { format!(" from byte {begun}") } else { String::new() };
            observer.observe(Progress::Note(format!(
                "pulling {} ({} bytes){from}",
                descriptor.digest, descriptor.size
            )));
            let mut copy = || -> io::Result<()> {
                let client = self.client.get().map_err(io::Error::other)?;
                let mut begun = partial.reader().map_err(io::Error::other)?;
                let mut rest = client.rest_of_blob(reference, descriptor, &mut begun)?;
                io::copy(&mut rest, &mut partial).map(drop)
            };
            let Err(source) = copy() else {
                return Ok(partial.commit(&descriptor.digest)?);
            };
            let is_damaged = source.kind() == io::ErrorKind::InvalidData;
            if is_damaged {
                partial.discard();
            }
            // What was here may have been wrong, and not what came.
            if !is_damaged || begun == 0 {
                return Err(Error::Fetch { digest: descriptor.digest, source });
            }
        }
    }

    /// Makes sure that the compressed blob is in the store, for pushing it elsewhere.
    ///
    /// # Errors
    /// As [`Bases::ensure_layer`].
    pub fn ensure_blob(&self, base: &Base, layer: &BaseLayer) -> Result<(), Error> {
        if self.store.has_blob(&layer.descriptor.digest, Some(layer.descriptor.size))? {
            return Ok(());
        }
        let mut blob = self.store.blob_writer()?;
        let mut source = self.open(base, &layer.descriptor)?;
        io::copy(&mut source, &mut blob)
            .map_err(|source| Error::Fetch { digest: layer.descriptor.digest, source })?;
        blob.commit(Some(&layer.descriptor.digest))?;
        Ok(())
    }

    fn open(&self, base: &Base, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        match &base.origin {
            Origin::Registry(reference) => {
                Ok(Box::new(self.client.get()?.blob(reference, descriptor)?))
            }
            Origin::Layout(directory) => Ok(Box::new(Layout::open(directory)?.blob(descriptor)?)),
        }
    }
}

/// Inflates `source` into the layer store, checking the diff ID.
pub(super) fn index_layer(
    store: &Store,
    layer: &BaseLayer,
    source: impl Read + Send,
) -> Result<(), Error> {
    let fetch = |source: io::Error| Error::Fetch { digest: layer.descriptor.digest, source };
    let inflated = decompress::reader(source).map_err(fetch)?;
    ahead(inflated, |inflated| index_inflated(store, layer, inflated))
}

fn index_inflated(
    store: &Store,
    layer: &BaseLayer,
    mut inflated: &mut dyn Read,
) -> Result<(), Error> {
    let fetch = |source: io::Error| Error::Fetch { digest: layer.descriptor.digest, source };
    let writer = store.layer_writer()?;
    let mut tar = BufWriter::with_capacity(1 << 18, writer);
    let written = layer::read(&mut inflated, &mut tar)
        .map_err(|source| Error::BaseLayer { digest: layer.descriptor.digest, source })?;
    // What follows the compressed stream still belongs to the blob's digest.
    io::copy(inflated, &mut io::sink()).map_err(fetch)?;
    tar.flush().map_err(fetch)?;
    if written.diff_id != layer.diff_id {
        return Err(Error::WrongDiffId {
            digest: layer.descriptor.digest,
            expected: layer.diff_id,
            found: written.diff_id,
        });
    }
    let writer = tar.into_inner().map_err(|error| fetch(error.into_error()))?;
    writer.commit(&written.diff_id, &written.index)?;
    Ok(())
}

/// `linux/amd64, linux/arm64`.
fn offered(platforms: &[Platform]) -> String {
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Splits `DIR[:TAG]` or `DIR@DIGEST`.
fn split_layout(place: &str) -> (PathBuf, Option<String>) {
    if let Some((directory, digest)) = place.split_once('@') {
        return (directory.into(), Some(digest.to_owned()));
    }
    match place.rsplit_once(':') {
        Some((directory, tag)) if !tag.contains('/') => (directory.into(), Some(tag.to_owned())),
        _ => (place.into(), None),
    }
}

fn assemble(
    name: &str,
    bytes: &[u8],
    kind: &str,
    read: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
    origin: Origin,
) -> Result<Base, Error> {
    let Document::Manifest(manifest) = parse_manifest(bytes, kind)? else {
        return Err(Error::not_an_image(name, kind));
    };
    let config: ImageConfig = serde_json::from_slice(&read(&manifest.config)?)
        .map_err(|source| Error::BadConfig { image: name.to_owned(), source })?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(Error::LayerCount {
            image: name.to_owned(),
            layers: manifest.layers.len(),
            diff_ids: config.rootfs.diff_ids.len(),
        });
    }
    let layers = manifest
        .layers
        .iter()
        .zip(&config.rootfs.diff_ids)
        .map(|(descriptor, diff_id)| BaseLayer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
        })
        .collect();
    let digest = Digest::of(bytes);
    Ok(Base { config, layers, media_type: kind.to_owned(), digest, origin })
}

/// Passes bytes on and keeps a copy; at the end of whoever reads, the rest is read
/// too, so that the copy is whole.
pub(super) struct Keep<'a, R: Read, W: Write> {
    source: R,
    copy: &'a mut W,
    drained: bool,
}

impl<'a, R: Read, W: Write> Keep<'a, R, W> {
    /// Keeps what is read of `source` in `copy`.
    pub(super) fn new(source: R, copy: &'a mut W) -> Self {
        Self { source, copy, drained: false }
    }
}

impl<R: Read, W: Write> Read for Keep<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.drained |= count == 0 && !buffer.is_empty();
        self.copy.write_all(&buffer[..count])?;
        Ok(count)
    }
}

impl<R: Read, W: Write> Drop for Keep<'_, R, W> {
    fn drop(&mut self) {
        if !self.drained {
            // A failure shows when the copy is committed: its digest is wrong.
            let _ = io::copy(&mut self.source, &mut self.copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_may_carry_a_tag_or_a_digest() {
        let split = |text: &str| {
            let (directory, rest) = split_layout(text);
            (directory.display().to_string(), rest)
        };
        assert_eq!(split("/a/b"), ("/a/b".to_owned(), None));
        assert_eq!(split("/a/b:v1"), ("/a/b".to_owned(), Some("v1".to_owned())));
        assert_eq!(split("/a:1/b"), ("/a:1/b".to_owned(), None));
        assert_eq!(split("/a@sha256:00"), ("/a".to_owned(), Some("sha256:00".to_owned())));
    }

    #[test]
    fn what_the_reader_leaves_is_kept_too() {
        let mut copy = Vec::new();
        {
            let mut keep = Keep::new(&b"abcdef"[..], &mut copy);
            let mut two = [0; 2];
            keep.read_exact(&mut two).expect("two bytes");
        }
        assert_eq!(copy, b"abcdef");
    }
}
