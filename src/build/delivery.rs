//! What a build delivers: one image, or an index over the images of several platforms
//! and what is attested about them.

use std::sync::Arc;

use super::base::Base;
use super::base::Bases;
use super::request::Request;
use crate::image::Assembled;
use crate::image::annotation::Place;
use crate::image::index;
use crate::image::index::AssembledIndex;
use crate::image::provenance;
use crate::image::provenance::Attestation;
use crate::image::provenance::Dependency;
use crate::image::provenance::Facts;
use crate::oci::descriptor::Descriptor;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The image of one platform.
pub(super) struct Made {
    /// What it is for.
    pub(super) platform: Platform,
    /// The image.
    pub(super) image: Assembled,
    /// What it stands on.
    pub(super) base: Option<Arc<Base>>,
    /// Steps of its target that ran.
    pub(super) misses: u32,
}

/// See the module.
pub(super) struct Delivery {
    /// At least one.
    pub(super) made: Vec<Made>,
    /// About the images, in their order; none unless asked for.
    pub(super) attestations: Vec<Attestation>,
    /// There when there are several images, or attestations, or it was asked for.
    pub(super) index: Option<AssembledIndex>,
}

impl Delivery {
    /// Puts together what `request` asks for.
    pub(super) fn new(request: &Request, bases: &Bases, mut made: Vec<Made>) -> Self {
        let annotations = &request.annotations;
        for one in &mut made {
            one.image.manifest.annotations =
                annotations.at(Place::ManifestDescriptor, &one.platform);
        }
        let attestations: Vec<Attestation> = match &request.provenance {
            None => Vec::new(),
            Some(builder) => made.iter().map(|one| attest(request, bases, builder, one)).collect(),
        };
        let index = (request.index || made.len() > 1 || !attestations.is_empty()).then(|| {
            let parts: Vec<index::Part<'_>> = made
                .iter()
                .enumerate()
                .map(|(at, one)| index::Part {
                    image: &one.image,
                    platform: &one.platform,
                    attestation: attestations.get(at),
                })
                .collect();
            let mut index =
                index::assemble(&parts, annotations.at(Place::Index, &request.platform));
            index.descriptor.annotations =
                annotations.at(Place::IndexDescriptor, &request.platform);
            index
        });
        Self { made, attestations, index }
    }

    /// What the destination's tag will name.
    pub(super) fn top(&self) -> &Descriptor {
        match &self.index {
            Some(index) => &index.descriptor,
            None => &self.first().image.manifest,
        }
    }

    /// The image of the first platform.
    pub(super) fn first(&self) -> &Made {
        self.made.first().expect("a build has at least one platform")
    }

    /// The layers of all images.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.made.iter().flat_map(|made| &made.image.layers)
    }

    /// Steps of the targets that ran.
    pub(super) fn misses(&self) -> u32 {
        self.made.iter().map(|one| one.misses).sum()
    }
}

fn attest(request: &Request, bases: &Bases, builder: &str, made: &Made) -> Attestation {
    let names: Vec<String> = request.destinations.iter().map(Reference::to_string).collect();
    let dependencies: Vec<Dependency> = bases
        .resolved(&made.platform)
        .into_iter()
        .map(|(name, base)| Dependency { name, digest: base.digest })
        .collect();
    provenance::attest(&Facts {
        image: &made.image.manifest,
        platform: &made.platform,
        build_platform: &request.build_platform,
        names: &names,
        dockerfile: request.dockerfile.as_deref().unwrap_or("Dockerfile"),
        builder,
        dependencies: &dependencies,
        created: made.image.image.created.as_deref(),
    })
}
