//! yadokari builds container images from Dockerfiles, inside a container, without
//! a daemon. `docs/architecture.md` walks a build and says what always holds.
//!
//! # The house
//!
//! Modules stand on floors and import from lower floors only (`tests/floors.rs`).
//! Read them in this order; nothing has to be opened twice.
//!
//! | floor | modules | what they are |
//! | --- | --- | --- |
//! | 6, the door | [`cli`] | flags to request; prints; exit codes |
//! | 5, the story | [`build`] | stages, the step loop, keys, layers on their way, pushing |
//! | 4, arrangements | [`step`], [`rootfs`] | what an instruction does to a root; a root |
//! | 3, hands | [`agent`], [`context`], [`fetch`], [`layout`], [`overlay`], [`registry`], [`sandbox`], [`store`], and below them [`root_dir`] | one thing of the outside world each |
//! | 2, thought and streams | [`plan`], [`image`], [`layer`], [`snapshot`] | pure, or generic over readers, writers and trees |
//! | 1, language | [`address`], [`dockerfile`], [`ignore`] | text to values |
//! | 0, words | [`oci`], [`path`], [`tree`], [`change`] | values |
//!
//! Beside it stands the crate `yadokari_cache`: 32-byte keys to versioned records,
//! shared by any number of processes; it alone names RocksDB and knows no Dockerfile.
//!
//! # Words
//!
//! *Instruction*: as parsed. *Step*: an instruction placed in a stage, expanded.
//! *Definition key*, *content key*, *hint*: see [`build::key`]. *Record*: what the
//! cache knows of a finished step. *Change log*: what a step touched, by inode.
//! *Change set*: what changed, by path. *Fold*: from log and trees to change set.
//! *Snapshot*: the act of finding the change set. *Lower*: a layer below the root
//! being built. *Store*: contents by digest on disk.

// 6: the door
pub mod cli;
// 5: the story
pub mod build;
// 4: arrangements
pub mod rootfs;
pub mod step;
// 3: hands
pub mod agent;
pub mod context;
pub mod fetch;
pub mod layout;
pub mod overlay;
pub mod registry;
pub mod root_dir;
pub mod sandbox;
pub mod store;
// 2: thought and streams
pub mod image;
pub mod layer;
pub mod plan;
pub mod snapshot;
// 1: language
pub mod address;
pub mod dockerfile;
pub mod ignore;
// 0: words
pub mod change;
pub mod oci;
pub mod path;
pub mod tree;
