//! One layer, two names: OCI's and Docker's media types.

use super::Format;
use crate::oci::media_type;

/// (OCI, Docker). The second half: layers that may not be distributed, deprecated
/// in OCI, still found under Windows bases.
const LAYERS: [(&str, &str); 5] = [
    (media_type::OCI_LAYER, media_type::DOCKER_LAYER),
    (media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP),
    (media_type::OCI_LAYER_ZSTD, media_type::DOCKER_LAYER_ZSTD),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ),
];

/// The name of a layer's media type in `format`; a type in neither family stays.
pub(super) fn layer(media_type: &str, format: Format) -> &str {
    LAYERS.iter().find(|(oci, docker)| media_type == *oci || media_type == *docker).map_or(
        media_type,
        |(oci, docker)| match format {
            Format::Oci => *oci,
            Format::Docker => *docker,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_change_their_name_and_nothing_else() {
        for (oci, docker) in LAYERS {
            assert_eq!(layer(oci, Format::Docker), docker);
            assert_eq!(layer(docker, Format::Oci), oci);
            assert_eq!(layer(oci, Format::Oci), oci);
        }
        assert_eq!(layer("text/plain", Format::Oci), "text/plain");
    }
}
