//! How a mount begins: the kernel says what it can, we say what we want of it.

use fuser::InitFlags;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::abi;
use super::abi::HeaderIn;
use super::abi::opcode;
use super::reply::Done;
use crate::overlay::answer::MAX_BACKGROUND;
use crate::overlay::answer::MAX_WRITE;
use crate::overlay::answer::WANTED;

/// Linux 6.1 and later say that set-id bits go, before an fallocate(2) or a
/// copy_file_range(2) of somebody who may not keep them.
const SAYS_BEFORE_CHANGING: u32 = 37;

/// What the kernel offers.
#[derive(Clone, Copy, Debug)]
pub(in crate::overlay) struct Offer {
    unique: u64,
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: InitFlags,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::overlay) struct Agreement {
    /// Requests may come over io_uring.
    pub(in crate::overlay) has_ring: bool,
    /// See [`SAYS_BEFORE_CHANGING`].
    pub(in crate::overlay) says_before_changing: bool,
    /// Files may be passed through, so OPEN and RELEASE are served.
    pub(in crate::overlay) passes_through: bool,
}

/// What a mount may have besides what all have.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::overlay) struct Wishes {
    /// Requests by io_uring.
    pub(in crate::overlay) ring: bool,
    /// Files that are passed through.
    pub(in crate::overlay) passthrough: bool,
}

/// How many filesystems may lie on top of each other below the mount, and it be one of
/// them: what is written is on one that lies on none. See `passthrough.rs`.
const STACK_DEPTH: u32 = 1;

/// Why a mount can't begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(in crate::overlay) enum Refusal {
    /// The first request is something else.
    #[error("the kernel's first request is not INIT")]
    NotInit,
    /// Another version of the protocol.
    #[error("the kernel speaks version {0}.{1} of the FUSE protocol, and 7.28 is needed")]
    Version(u32, u32),
}

impl Offer {
    /// Reads the first request.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(in crate::overlay) fn read(message: &[u8]) -> Result<Self, Refusal> {
        let (header, body) = HeaderIn::read_from_prefix(message).map_err(|_| Refusal::NotInit)?;
        if header.opcode != opcode::INIT {
            return Err(Refusal::NotInit);
        }
        let (init, rest) = abi::InitIn::read_from_prefix(body).map_err(|_| Refusal::NotInit)?;
        let low = InitFlags::from_bits_retain(u64::from(init.flags));
        let high = match u32::read_from_prefix(rest) {
            Ok((high, _)) if low.contains(InitFlags::FUSE_INIT_EXT) => u64::from(high) << 32,
            _ => 0,
        };
        Ok(Self {
            unique: header.unique,
            major: init.major,
            minor: init.minor,
            max_readahead: init.max_readahead,
            flags: low | InitFlags::from_bits_retain(high),
        })
    }

    /// Whether the kernel would talk over io_uring.
    pub(in crate::overlay) fn has_ring(&self) -> bool {
        self.flags.contains(InitFlags::FUSE_OVER_IO_URING)
    }

    /// What we want of it, with what is wished and offered, and the answer that says so.
    ///
    /// # Errors
    /// [`Refusal::Version`].
    pub(in crate::overlay) fn accept(
        &self,
        wishes: Wishes,
    ) -> Result<(Agreement, Vec<u8>), Refusal> {
        // A kernel with a higher major version would have to be asked to speak this one;
        // there is none.
        if self.major != abi::MAJOR || self.minor < abi::OLDEST_MINOR {
            return Err(Refusal::Version(self.major, self.minor));
        }
        let mut wanted = WANTED.into_iter().fold(
            InitFlags::FUSE_ASYNC_READ
                | InitFlags::FUSE_BIG_WRITES
                | InitFlags::FUSE_MAX_PAGES
                | InitFlags::FUSE_INIT_EXT,
            InitFlags::union,
        );
        if wishes.ring {
            wanted |= InitFlags::FUSE_OVER_IO_URING;
        }
        let passes_through = wishes.passthrough && self.flags.contains(InitFlags::FUSE_PASSTHROUGH);
        if passes_through {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
        }
        let lacking = wanted.difference(self.flags);
        if !lacking.is_empty() {
            tracing::debug!(?lacking, "the kernel lacks FUSE features");
        }
        let flags = wanted & self.flags;
        let out = abi::InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR,
            max_readahead: self.max_readahead,
            flags: flags.bits() as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: (MAX_WRITE as usize / rustix::param::page_size()).max(1) as u16,
            flags2: (flags.bits() >> 32) as u32,
            max_stack_depth: if passes_through { STACK_DEPTH } else { 0 },
            ..abi::InitOut::default()
        };
        let agreement = Agreement {
            has_ring: flags.contains(InitFlags::FUSE_OVER_IO_URING),
            says_before_changing: self.minor >= SAYS_BEFORE_CHANGING,
            passes_through,
        };
        let done = Done::Answer { error: 0, length: size_of_val(&out) };
        let mut message = done.header(self.unique).unwrap_or_default().as_bytes().to_vec();
        message.extend_from_slice(out.as_bytes());
        Ok((agreement, message))
    }

    /// The answer that ends the mount.
    pub(in crate::overlay) fn refuse(&self) -> Vec<u8> {
        let header = Done::error(libc::EPROTO).header(self.unique);
        header.unwrap_or_default().as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(init: abi::InitIn, high: u32) -> Vec<u8> {
        let header = HeaderIn { opcode: opcode::INIT, unique: 9, ..HeaderIn::default() };
        let mut message = [header.as_bytes(), init.as_bytes(), &high.to_ne_bytes()].concat();
        message.resize(message.len() + 44, 0);
        message
    }

    fn offered(flags: InitFlags) -> Vec<u8> {
        let (flags, high) = (flags.bits() as u32, (flags.bits() >> 32) as u32);
        message(abi::InitIn { major: 7, minor: 41, max_readahead: 1 << 17, flags }, high)
    }

    fn answered(bytes: &[u8]) -> (abi::HeaderOut, abi::InitOut) {
        let (header, rest) = abi::HeaderOut::read_from_prefix(bytes).expect("a header");
        (header, abi::InitOut::read_from_bytes(rest).expect("the kernel's 64 bytes"))
    }

    #[test]
    fn no_more_is_wanted_than_is_offered_and_the_ring_only_if_asked_for() {
        let ring = InitFlags::FUSE_INIT_EXT | InitFlags::FUSE_OVER_IO_URING;
        let offer = Offer::read(&offered(ring | InitFlags::FUSE_ATOMIC_O_TRUNC)).unwrap();
        assert!(offer.has_ring());
        let (agreement, bytes) = offer.accept(Wishes { ring: true, passthrough: true }).unwrap();
        let (header, out) = answered(&bytes);
        assert_eq!((header.len as usize, header.error, header.unique), (bytes.len(), 0, 9));
        assert!(agreement.has_ring && agreement.says_before_changing);
        assert_eq!(u64::from(out.flags) | u64::from(out.flags2) << 32, ring.bits());
        assert_eq!(out.max_write, 1 << 20);
        assert_eq!(usize::from(out.max_pages) * rustix::param::page_size(), 1 << 20);
        let (agreement, bytes) = offer.accept(Wishes::default()).unwrap();
        assert!(!agreement.has_ring);
        assert_eq!(answered(&bytes).1.flags2, 0);
    }

    #[test]
    fn further_flags_count_only_where_the_kernel_says_that_there_are_some() {
        let bytes = offered(InitFlags::FUSE_OVER_IO_URING);
        assert!(!Offer::read(&bytes).unwrap().has_ring());
    }

    #[test]
    fn another_protocol_is_refused_by_name() {
        let old = abi::InitIn { major: 7, minor: 27, ..abi::InitIn::default() };
        let refusal = Offer::read(&message(old, 0)).unwrap().accept(Wishes::default()).unwrap_err();
        assert_eq!(refusal, Refusal::Version(7, 27));
        let foreign = abi::InitIn { major: 8, minor: 40, ..abi::InitIn::default() };
        assert!(Offer::read(&message(foreign, 0)).unwrap().accept(Wishes::default()).is_err());
    }

    #[test]
    fn what_is_no_init_is_no_offer() {
        let bytes = offered(InitFlags::empty());
        for length in 0..56 {
            assert!(Offer::read(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut bytes = bytes;
        bytes[4] = 1;
        assert_eq!(Offer::read(&bytes).unwrap_err(), Refusal::NotInit);
    }
}
