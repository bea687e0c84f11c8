//! Keys: BLAKE3 over tagged, length-prefixed fields.
//!
//! # Framing
//!
//! ```text
//! hash  = BLAKE3 in key-derivation mode, its context string = the domain
//! field = kind (1 byte), length of the tag (u64), tag, then by kind:
//!   B bytes     length (u64), bytes
//!   N number    u64
//!   O optional  0, or 1, length (u64), bytes
//!   L list      for each item: 1, length (u64), bytes; at the end: 0
//! ```
//!
//! Numbers are little-endian. The encoding can be read back field by field, so
//! two different sequences of fields never feed the hash the same bytes; tests
//! read it back.

use std::fmt;

/// Names a record: 32 bytes, equal only for equal inputs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Takes the 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 hex digits, as [`Display`](fmt::Display) writes them.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// Feeds fields into a key. The order of calls is part of the key.
#[derive(Clone)]
pub struct KeyHasher {
    hasher: blake3::Hasher,
    #[cfg(test)]
    fed: Vec<u8>,
}

impl KeyHasher {
    /// Starts a key of one kind. The domain is a constant of the program, names
    /// what the key is for and carries a version, as in
    /// `yadokari 2026 step definition v1`: keys of different domains never meet.
    pub fn new(domain: &str) -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key(domain),
            #[cfg(test)]
            fed: Vec::new(),
        }
    }

    /// A field of bytes.
    pub fn field(&mut self, tag: &str, bytes: &[u8]) -> &mut Self {
        self.open(b'B', tag).sized(bytes)
    }

    /// A field of text.
    pub fn text(&mut self, tag: &str, text: &str) -> &mut Self {
        self.field(tag, text.as_bytes())
    }

    /// Another key, most often the parent's.
    pub fn key(&mut self, tag: &str, key: &Key) -> &mut Self {
        self.field(tag, key.as_bytes())
    }

    /// A number.
    pub fn number(&mut self, tag: &str, number: u64) -> &mut Self {
        self.open(b'N', tag).feed(&number.to_le_bytes())
    }

    /// A yes or no.
    pub fn flag(&mut self, tag: &str, flag: bool) -> &mut Self {
        self.number(tag, u64::from(flag))
    }

    /// A field that may be absent; absent differs from empty.
    pub fn optional(&mut self, tag: &str, bytes: Option<&[u8]>) -> &mut Self {
        self.open(b'O', tag);
        match bytes {
            Some(bytes) => self.feed(&[1]).sized(bytes),
            None => self.feed(&[0]),
        }
    }

    /// An ordered list; sort it before where order has no meaning.
    pub fn list<I>(&mut self, tag: &str, items: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        self.open(b'L', tag);
        for item in items {
            self.feed(&[1]).sized(item.as_ref());
        }
        self.feed(&[0])
    }

    /// A list of name and value, such as an environment.
    pub fn pairs<I, N, V>(&mut self, tag: &str, pairs: I) -> &mut Self
    where
        I: IntoIterator<Item = (N, V)>,
        N: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        self.open(b'L', tag);
        for (name, value) in pairs {
            self.feed(&[1]).sized(name.as_ref());
            self.feed(&[1]).sized(value.as_ref());
        }
        self.feed(&[0])
    }

    /// The key of all fields so far; more may follow for a longer key.
    pub fn finish(&self) -> Key {
        Key(*self.hasher.finalize().as_bytes())
    }

    fn open(&mut self, kind: u8, tag: &str) -> &mut Self {
        self.feed(&[kind]).sized(tag.as_bytes())
    }

    fn sized(&mut self, bytes: &[u8]) -> &mut Self {
        self.feed(&(bytes.len() as u64).to_le_bytes()).feed(bytes)
    }

    fn feed(&mut self, bytes: &[u8]) -> &mut Self {
        self.hasher.update(bytes);
        #[cfg(test)]
        self.fed.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One field as a test states it.
    #[derive(Debug, Clone, PartialEq)]
    enum Field {
        Bytes(String, Vec<u8>),
        Number(String, u64),
        Optional(String, Option<Vec<u8>>),
        List(String, Vec<Vec<u8>>),
    }

    fn feed(fields: &[Field]) -> KeyHasher {
        let mut hasher = KeyHasher::new("test");
        for field in fields {
            match field {
                Field::Bytes(tag, bytes) => hasher.field(tag, bytes),
                Field::Number(tag, number) => hasher.number(tag, *number),
                Field::Optional(tag, bytes) => hasher.optional(tag, bytes.as_deref()),
                Field::List(tag, items) => hasher.list(tag, items),
            };
        }
        hasher
    }

    /// The inverse of `feed`: that it exists is the proof that framing is
    /// unambiguous.
    fn read_back(mut bytes: &[u8]) -> Vec<Field> {
        fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
            let (head, tail) = bytes.split_at(count);
            *bytes = tail;
            head
        }
        fn number(bytes: &mut &[u8]) -> u64 {
            u64::from_le_bytes(take(bytes, 8).try_into().unwrap())
        }
        fn sized(bytes: &mut &[u8]) -> Vec<u8> {
            let length = number(bytes) as usize;
            take(bytes, length).to_vec()
        }
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let kind = take(&mut bytes, 1)[0];
            let tag = String::from_utf8(sized(&mut bytes)).unwrap();
            fields.push(match kind {
                b'B' => Field::Bytes(tag, sized(&mut bytes)),
                b'N' => Field::Number(tag, number(&mut bytes)),
                b'O' => {
                    Field::Optional(tag, (take(&mut bytes, 1)[0] == 1).then(|| sized(&mut bytes)))
                }
                b'L' => {
                    let mut items = Vec::new();
                    while take(&mut bytes, 1)[0] == 1 {
                        items.push(sized(&mut bytes));
                    }
                    Field::List(tag, items)
                }
                other => panic!("unknown kind {other}"),
            });
        }
        fields
    }

    fn any_field() -> impl Strategy<Value = Field> {
        // A tiny alphabet: collisions by shifted borders would be frequent.
        let bytes = || prop::collection::vec(0u8..3, 0..4);
        let tag = "[ab]{0,2}";
        prop_oneof![
            (tag, bytes()).prop_map(|(t, b)| Field::Bytes(t, b)),
            (tag, 0u64..3).prop_map(|(t, n)| Field::Number(t, n)),
            (tag, prop::option::of(bytes())).prop_map(|(t, b)| Field::Optional(t, b)),
            (tag, prop::collection::vec(bytes(), 0..3)).prop_map(|(t, l)| Field::List(t, l)),
        ]
    }

    proptest! {
        #[test]
        fn what_was_fed_can_be_read_back(fields in prop::collection::vec(any_field(), 0..6)) {
            prop_assert_eq!(read_back(&feed(&fields).fed), fields);
        }

        #[test]
        fn keys_are_equal_exactly_when_fields_are(
            a in prop::collection::vec(any_field(), 0..3),
            b in prop::collection::vec(any_field(), 0..3),
        ) {
            prop_assert_eq!(feed(&a).finish() == feed(&b).finish(), a == b);
        }
    }

    #[test]
    fn borders_between_fields_items_and_tags_count() {
        let keys = [
            KeyHasher::new("d").text("a", "bc").finish(),
            KeyHasher::new("d").text("ab", "c").finish(),
            KeyHasher::new("d").list("a", ["bc"]).finish(),
            KeyHasher::new("d").list("a", ["b", "c"]).finish(),
            KeyHasher::new("d").list("a", ["c", "b"]).finish(),
            KeyHasher::new("d").text("a", "b").text("", "c").finish(),
            KeyHasher::new("d").optional("a", None).finish(),
            KeyHasher::new("d").optional("a", Some(b"")).finish(),
            KeyHasher::new("d").text("a", "").finish(),
            KeyHasher::new("e").text("a", "bc").finish(),
            KeyHasher::new("d").finish(),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[..i] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn the_key_of_known_fields_never_changes() {
        let key = KeyHasher::new("yadokari test v1")
            .text("text", "value")
            .number("number", 7)
            .optional("optional", None)
            .pairs("environment", [("A", "1")])
            .finish();
        assert_eq!(key.to_string(), GOLDEN);
        assert_eq!(Key::from_hex(GOLDEN), Some(key));
    }

    // A change of this value makes every cache in the world miss.
    const GOLDEN: &str = "784587741aa5367ba2ced86dcf6575e7c96fe37e4cc936d0212e90220f9ade1d";
}
