//! Where a shared cache is: a repository of a registry, or an OCI image layout.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use super::super::client::LazyClient;
use super::artifact::Artifact;
use super::artifact::SharedStep;
use crate::layout;
use crate::layout::Layout;
use crate::layout::Named;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::media_type;
use crate::oci::reference::ParseReferenceError;
use crate::oci::reference::Reference;
use crate::registry;

/// A place that doesn't do what it should.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The layout can't be read or written.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// A key that can't be a tag: never, it is hex.
    #[error(transparent)]
    Tag(#[from] ParseReferenceError),
}

/// What is asked, with a connection where there is one.
#[expect(clippy::large_enum_variant, reason = "there is one in a build")]
pub(super) enum Place {
    /// A repository.
    Registry {
        /// Which; its tag means nothing.
        repository: Reference,
        /// How it is reached.
        client: Arc<LazyClient>,
    },
    /// A layout on disk.
    Layout {
        /// Where.
        directory: PathBuf,
        /// Read once; `None` where nothing is there yet.
        opened: OnceLock<Option<Layout>>,
    },
}

impl Place {
    /// The manifest called `tag`, verified; `None` if there is none.
    pub(super) fn manifest(&self, tag: &str) -> Result<Option<Vec<u8>>, PlaceError> {
        match self {
            Self::Registry { repository, client } => {
                match client.get()?.manifest(&repository.with_tag(tag)?) {
                    Ok(fetched) => Ok(Some(fetched.bytes)),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Layout { .. } => {
                let Some(layout) = self.layout()? else { return Ok(None) };
                match layout.named(tag) {
                    Some(descriptor) => Ok(Some(layout.document(descriptor)?)),
                    None => Ok(None),
                }
            }
        }
    }

    /// Whether there is a manifest called `tag`.
    pub(super) fn has(&self, tag: &str) -> Result<bool, PlaceError> {
        match self {
            Self::Registry { repository, client } => {
                match client.get()?.resolve(&repository.with_tag(tag)?) {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_not_found() => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Layout { .. } => {
                Ok(self.layout()?.is_some_and(|layout| layout.named(tag).is_some()))
            }
        }
    }

    /// A small blob, verified.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PlaceError> {
        match self {
            Self::Registry { repository, client } => {
                Ok(client.get()?.blob_bytes(repository, descriptor)?)
            }
            Self::Layout { directory, .. } => Ok(Layout::open(directory)?.document(descriptor)?),
        }
    }

    /// A blob as a stream that verifies itself.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, PlaceError> {
        match self {
            Self::Registry { repository, client } => {
                Ok(Box::new(client.get()?.blob(repository, descriptor)?))
            }
            Self::Layout { directory, .. } => {
                Ok(Box::new(Layout::open(directory)?.blob(descriptor)?))
            }
        }
    }

    /// Brings one step there: layer, record, then the manifest under its tags.
    pub(super) fn put(
        &self,
        step: &SharedStep,
        artifact: &Artifact,
        open: &dyn Fn(&Digest) -> io::Result<File>,
        mount_from: &[Reference],
    ) -> Result<(), PlaceError> {
        let record = &step.record;
        let keys = [Some(record.definition), record.content, step.inferred, record.hint];
        let names: Vec<String> = keys.iter().flatten().map(ToString::to_string).collect();
        match self {
            Self::Registry { repository, client } => {
                let client = client.get()?;
                let source = || open(&step.layer.digest);
                client.push_blob(repository, &step.layer, &source, mount_from)?;
                client.push_blob_bytes(repository, &artifact.config, &artifact.record)?;
                for name in names {
                    let tagged = repository.with_tag(&name)?;
                    let kind = media_type::OCI_MANIFEST;
                    match client.push_manifest(&tagged, kind, &artifact.manifest) {
                        // Whoever was there first has an equivalent record.
                        Err(error) if error.is_immutable_tag() => {}
                        other => drop(other?),
                    }
                }
                Ok(())
            }
            Self::Layout { directory, .. } => {
                let entry = Named {
                    names,
                    manifest: artifact.manifest.clone(),
                    config: artifact.record.clone(),
                    layers: vec![step.layer.clone()],
                };
                Ok(layout::add(directory, &[entry], open)?)
            }
        }
    }

    /// The repository, to mount from.
    pub(super) fn repository(&self) -> Option<&Reference> {
        match self {
            Self::Registry { repository, .. } => Some(repository),
            Self::Layout { .. } => None,
        }
    }

    fn layout(&self) -> Result<Option<&Layout>, PlaceError> {
        let Self::Layout { directory, opened } = self else { return Ok(None) };
        if let Some(layout) = opened.get() {
            return Ok(layout.as_ref());
        }
        let layout = match directory.join("oci-layout").exists() {
            true => Some(Layout::open(directory)?),
            false => None,
        };
        Ok(opened.get_or_init(|| layout).as_ref())
    }
}
