//! Chance that can be repeated: splitmix64.

/// Random numbers; the same seed gives the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which isn't 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Bytes that no other file is likely to have.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(length).collect()
    }

    /// Length of a file: mostly small, now and then up to 3 MB.
    pub(crate) fn length(&mut self) -> usize {
        let limit = match self.below(100) {
            0..15 => 1,
            15..60 => 600,
            60..90 => 20_000,
            90..98 => 300_000,
            _ => 3_000_000,
        };
        self.below(limit) as usize
    }

    /// Permissions, set-id and sticky bits now and then.
    pub(crate) fn mode(&mut self) -> u16 {
        let limit = if self.chance(30) { 0o10000 } else { 0o1000 };
        self.below(limit) as u16
    }

    pub(crate) fn id(&mut self) -> u32 {
        *self.pick(&[0, 0, 1, 1000, 65_534, 3_000_000])
    }

    /// A valid value of `security.capability` (revision 2 of capability.h).
    pub(crate) fn capability(&mut self) -> Vec<u8> {
        let mut value = vec![0; 20];
        value[3] = 2;
        value[5] = self.next() as u8;
        value
    }

    pub(crate) fn name(&mut self) -> &'static [u8] {
        const LONG: [u8; 200] = [b'l'; 200];
        let names: [&[u8]; 12] =
            [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"a.b", b"\xff\xfe", b"x y\n", &LONG];
        names[self.below(names.len() as u64) as usize]
    }
}
