//! Lists from strangers, whose length is bounded before their items are kept.
//!
//! An item can be dozens of times larger in memory than its shortest encoding, so a bound on the bytes alone bounds nothing.

use std::{fmt, marker::PhantomData};

use scale::{Compact, Decode, Input};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

/// Most certificates that an envelope carries.
pub(crate) const MAX_CERTIFICATES: usize = 16;

/// At most `MAX` items.
pub(crate) struct Bounded<T, const MAX: usize>(pub(crate) Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Decode, const MAX: usize> Decode for Bounded<T, MAX> {
    fn decode<I: Input>(input: &mut I) -> Result<Self, scale::Error> {
        let Compact(count) = Compact::<u32>::decode(input)?;
        if usize::try_from(count).map_or(true, |count| count > MAX) {
            return Err("a list is too long".into());
        }
        (0..count).map(|_| T::decode(input)).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Items::<T, MAX>(PhantomData))
    }
}

struct Items<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
    type Value = Bounded<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            if items.len() == MAX {
                return Err(de::Error::invalid_length(MAX + 1, &self));
            }
            items.push(item);
        }
        Ok(Bounded(items))
    }
}
