//! IPv4 and IPv6 as data: what differs between them is a value in a [`PerFamily`], never a second function.

use std::fmt;
use std::net::IpAddr;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families, IPv4 first: the order in which flannel writes and prefers them.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of an address of this family, in bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl Family {
    /// The smallest MTU in bytes of a link that carries this family: what every IPv4 host takes in one piece (RFC 791), and
    /// every IPv6 link (RFC 8200 section 5). Below the one the kernel refuses, below the other it has no IPv6 on the link.
    pub fn least_mtu(self) -> u32 {
        match self {
            Self::V4 => 68,
            Self::V6 => 1280,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// At most one value for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerFamily<T> {
    /// the value for IPv4
    pub v4: Option<T>,
    /// the value for IPv6
    pub v6: Option<T>,
}

// Not derived: nothing is a value for every T, whether or not T has a default.
impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> PerFamily<T> {
    /// Asks for the value of each family in turn.
    pub fn from_fn(mut value: impl FnMut(Family) -> Option<T>) -> Self {
        Self { v4: value(Family::V4), v6: value(Family::V6) }
    }

    /// The value for a family.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The value for a family, to be changed.
    pub fn get_mut(&mut self, family: Family) -> Option<&mut T> {
        match family {
            Family::V4 => self.v4.as_mut(),
            Family::V6 => self.v6.as_mut(),
        }
    }

    /// Takes the value for a family out.
    pub fn take(&mut self, family: Family) -> Option<T> {
        match family {
            Family::V4 => self.v4.take(),
            Family::V6 => self.v6.take(),
        }
    }

    /// Sets the value for a family and returns the one before.
    pub fn set(&mut self, family: Family, value: T) -> Option<T> {
        match family {
            Family::V4 => self.v4.replace(value),
            Family::V6 => self.v6.replace(value),
        }
    }

    /// The families that have a value, with it, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The families that have a value, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.iter().map(|(family, _)| family)
    }

    /// The same families with other values.
    pub fn map<U>(&self, mut value: impl FnMut(Family, &T) -> U) -> PerFamily<U> {
        PerFamily::from_fn(|family| self.get(family).map(|own| value(family, own)))
    }

    /// No family has a value.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Both have values for the same families.
    pub fn same_families<U>(&self, other: &PerFamily<U>) -> bool {
        self.v4.is_some() == other.v4.is_some() && self.v6.is_some() == other.v6.is_some()
    }
}

impl<T> FromIterator<(Family, T)> for PerFamily<T> {
    /// The last value of each family wins.
    fn from_iter<I: IntoIterator<Item = (Family, T)>>(values: I) -> Self {
        let mut all = Self::default();
        for (family, value) in values {
            all.set(family, value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_by_family_in_order() {
        let mut pair: PerFamily<u8> = [(Family::V6, 6), (Family::V4, 4)].into_iter().collect();
        assert_eq!(pair.iter().collect::<Vec<_>>(), [(Family::V4, &4), (Family::V6, &6)]);
        assert_eq!(pair.map(|family, value| (family, value + 1)).v6, Some((Family::V6, 7)));
        assert_eq!(pair.set(Family::V4, 5), Some(4));
        assert!(pair.same_families(&PerFamily { v4: Some(""), v6: Some("") }));
        assert!(!pair.same_families(&PerFamily { v4: Some(""), v6: None }));
        assert!(PerFamily::<()>::default().is_empty());
    }
}
