//! Units: products of powers of named base units, and the names that a file may use.
//!
//! Powers are counted in twelfths, so that roots of units have one (`cycles^(1/2)`). Scaled names (`KiB`, `us`) exist for what a
//! reader writes and reads; formulas compute in base units.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Twelfths of a power.
const TWELFTHS: i32 = 12;
/// The largest power of a base unit.
const MAX_POWER: i32 = 99;

/// A product of powers of base units; the empty product is the unit of plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// Twelfths of powers by base unit, none of them zero.
    powers: BTreeMap<Arc<str>, i32>,
}

impl Unit {
    /// The unit of plain numbers.
    #[must_use]
    pub fn one() -> Self {
        Self::default()
    }

    /// A base unit.
    #[must_use]
    pub fn base(name: &str) -> Self {
        Self { powers: BTreeMap::from([(Arc::from(name), TWELFTHS)]) }
    }

    /// Whether this is the unit of plain numbers.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.powers.is_empty()
    }

    /// The product; `None` where a power grows absurd.
    #[must_use]
    pub fn times(&self, other: &Self) -> Option<Self> {
        let mut powers = self.powers.clone();
        for (name, power) in &other.powers {
            *powers.entry(Arc::clone(name)).or_insert(0) += power;
        }
        Self::checked(powers)
    }

    /// The quotient; `None` where a power grows absurd.
    #[must_use]
    pub fn over(&self, other: &Self) -> Option<Self> {
        self.times(&other.to_twelfths(-TWELFTHS)?)
    }

    /// This unit to a power; `None` where the power is no multiple of 1/12, or absurd.
    #[must_use]
    pub fn to_power(&self, power: f64) -> Option<Self> {
        let twelfths = power * f64::from(TWELFTHS);
        let limit = f64::from(MAX_POWER * TWELFTHS);
        if twelfths.is_nan() || twelfths.abs() > limit || (twelfths - twelfths.round()).abs() > 1e-9 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        self.to_twelfths(twelfths.round() as i32)
    }

    fn to_twelfths(&self, twelfths: i32) -> Option<Self> {
        let mut powers = BTreeMap::new();
        for (name, power) in &self.powers {
            let product = power.checked_mul(twelfths)?;
            if product % TWELFTHS != 0 {
                return None;
            }
            powers.insert(Arc::clone(name), product / TWELFTHS);
        }
        Self::checked(powers)
    }

    fn checked(mut powers: BTreeMap<Arc<str>, i32>) -> Option<Self> {
        powers.retain(|_, power| *power != 0);
        powers.values().all(|power| power.abs() <= MAX_POWER * TWELFTHS).then_some(Self { powers })
    }

    /// The factors with positive powers, or with negative ones, each with the size of its power in twelfths.
    fn side(&self, positive: bool) -> impl Iterator<Item = (&str, i32)> {
        let side = self.powers.iter().filter(move |(_, power)| (**power > 0) == positive);
        side.map(|(name, power)| (&**name, power.abs()))
    }

    /// The factors of one side, each rendered by `factor` from its name and its power, a fraction.
    pub(crate) fn factors(&self, positive: bool, factor: impl Fn(&str, i32, i32) -> String) -> Vec<String> {
        self.side(positive)
            .map(|(name, power)| {
                let divisor = gcd(power, TWELFTHS);
                factor(name, power / divisor, TWELFTHS / divisor)
            })
            .collect()
    }
}

fn gcd(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// As a file writes it: `cycles/exits`, `1/pages^2`.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let factor = |name: &str, over: i32, under: i32| match (over, under) {
            (1, 1) => name.to_owned(),
            (over, 1) => format!("{name}^{over}"),
            (over, under) => format!("{name}^({over}/{under})"),
        };
        let (above, below) = (self.factors(true, factor), self.factors(false, factor));
        f.write_str(&if above.is_empty() { "1".to_owned() } else { above.join("*") })?;
        below.iter().try_for_each(|factor| write!(f, "/{factor}"))
    }
}

/// A unit as it was written: what one of it is in base units, and the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// The base units.
    pub unit: Unit,
    /// How many base units one of it is.
    pub scale: f64,
    /// As it was written.
    pub text: String,
}

impl Scaled {
    /// Plain numbers.
    #[must_use]
    pub fn one() -> Self {
        Self { unit: Unit::one(), scale: 1.0, text: "1".to_owned() }
    }
}

/// Base units that need no declaration, each with its singular.
const BASES: &[(&str, &str)] = &[
    ("cycles", "cycle"),
    ("instructions", "instruction"),
    ("seconds", "second"),
    ("bytes", "byte"),
    ("references", "reference"),
    ("walks", "walk"),
    ("accesses", "access"),
    ("exits", "exit"),
    ("faults", "fault"),
    ("stores", "store"),
    ("loads", "load"),
    ("flushes", "flush"),
    ("hits", "hit"),
    ("misses", "miss"),
    ("pages", "page"),
    ("tables", "table"),
    ("entries", "entry"),
    ("switches", "switch"),
    ("interrupts", "interrupt"),
    ("operations", "operation"),
];

/// Names for multiples of base units.
const MULTIPLES: &[(&str, &str, f64)] = &[
    ("KiB", "bytes", 1024.0),
    ("MiB", "bytes", 1_048_576.0),
    ("GiB", "bytes", 1_073_741_824.0),
    ("TiB", "bytes", 1_099_511_627_776.0),
    ("ns", "seconds", 1e-9),
    ("us", "seconds", 1e-6),
    ("ms", "seconds", 1e-3),
    ("s", "seconds", 1.0),
];

/// The units that a file may use: those of the language, and those that it declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Units {
    declared: Vec<(String, String)>,
}

impl Units {
    /// Makes a base unit known, with what it counts.
    pub(crate) fn declare(&mut self, name: String, doc: String) {
        self.declared.push((name, doc));
    }

    /// The units that the file declares, each with what it counts.
    pub fn declared(&self) -> impl Iterator<Item = (&str, &str)> {
        self.declared.iter().map(|(name, doc)| (name.as_str(), doc.as_str()))
    }

    /// The unit of a name, and how many base units it is.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(Unit, f64)> {
        if let Some((base, _)) = BASES.iter().find(|(many, one)| *many == name || *one == name) {
            return Some((Unit::base(base), 1.0));
        }
        if let Some((_, base, scale)) = MULTIPLES.iter().find(|(multiple, ..)| *multiple == name) {
            return Some((Unit::base(base), *scale));
        }
        self.declared.iter().any(|(declared, _)| declared == name).then(|| (Unit::base(name), 1.0))
    }

    /// Every name that [`find`](Self::find) knows, singulars left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let language = BASES.iter().map(|(many, _)| *many).chain(MULTIPLES.iter().map(|(name, ..)| *name));
        language.chain(self.declared.iter().map(|(name, _)| name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> Unit {
        Unit::base(name)
    }

    #[test]
    fn units_multiply_divide_and_have_roots() {
        let price = unit("cycles").over(&unit("exits")).unwrap();
        assert_eq!(price.to_string(), "cycles/exits");
        assert_eq!(price.times(&unit("exits")), Some(unit("cycles")));
        assert!(price.over(&price).unwrap().is_one());
        assert_eq!(price.to_power(2.0).unwrap().to_string(), "cycles^2/exits^2");
        assert_eq!(price.to_power(0.5).unwrap().to_string(), "cycles^(1/2)/exits^(1/2)");
        assert_eq!(price.to_power(0.5).unwrap().to_power(2.0), Some(price.clone()));
        assert_eq!(unit("pages").to_power(-1.0).unwrap().to_string(), "1/pages");
        assert_eq!(price.to_power(0.0), Some(Unit::one()));
    }

    #[test]
    fn absurd_powers_are_refused() {
        let high = unit("pages").to_power(99.0).unwrap();
        assert_eq!(high.times(&unit("pages")), None);
        for power in [100.0, -100.0, 0.3, f64::NAN, f64::INFINITY] {
            assert_eq!(unit("pages").to_power(power), None, "{power}");
        }
        assert_eq!(unit("pages").to_power(1.0 / 12.0).unwrap().to_power(0.5), None);
    }

    #[test]
    fn singulars_and_multiples_are_known() {
        let mut units = Units::default();
        assert_eq!(units.find("exit"), units.find("exits"));
        assert_eq!(units.find("KiB"), Some((unit("bytes"), 1024.0)));
        assert_eq!(units.find("epochs"), None);
        units.declare("epochs".to_owned(), String::new());
        assert_eq!(units.find("epochs"), Some((unit("epochs"), 1.0)));
    }
}
