//! Selectors: which machines a job may have.
//!
//! A selector is a set of labels that must be equal and a list of further constraints, written as people say them:
//! `memory_mib >= 4096`, `vmx.unrestricted`, `not nested`, `firmware != bios`, `model in (158, 165)`. They are read
//! when a plan is stored, so that a mistake is answered at once; the ledger keeps their canonical text.
//!
//! A machine that lacks a label satisfies no comparison on it, `!=` included: what a machine does not say is not known,
//! and a crash test on a machine of unknown kind is worse than one that waits and says why.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Labels, of a machine or asked for.
pub type Labels = BTreeMap<String, String>;

/// Constraints one selector may have; more are a mistake.
const CONSTRAINTS_MAX: usize = 64;
/// Longest constraint, in bytes.
const CONSTRAINT_BYTES: usize = 500;
/// Values of a label that mean "no" where a constraint only names the label.
const NO: [&str; 4] = ["0", "false", "no", ""];

/// What a machine says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its name; asked for as `name`.
    pub name: &'a str,
    /// What drives it; asked for as `driver`.
    pub driver: &'a str,
    /// Its controller's name; asked for as `controller`.
    pub controller: &'a str,
    /// Its labels, as its controller's configuration has them.
    pub labels: &'a Labels,
    /// Those that follow from its inventory, where the configuration says nothing.
    pub seen: &'a Labels,
}

impl<'a> Facts<'a> {
    fn get(&self, label: &str) -> Option<&'a str> {
        match label {
            "name" => Some(self.name),
            "driver" => Some(self.driver),
            "controller" => Some(self.controller),
            _ => self.labels.get(label).or_else(|| self.seen.get(label)).map(String::as_str),
        }
    }
}

/// How two numbers must compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Compare {
    Less,
    AtMost,
    AtLeast,
    More,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Test {
    Equal(String),
    Differs(String),
    Number(Compare, String),
    OneOf(BTreeSet<String>),
    NoneOf(BTreeSet<String>),
    Yes,
    No,
}

/// One thing that is asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    label: String,
    test: Test,
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = &self.label;
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
        match &self.test {
            Test::Equal(value) => write!(f, "{label} = {value}"),
            Test::Differs(value) => write!(f, "{label} != {value}"),
            Test::Number(compare, value) => {
                let sign = match compare {
                    Compare::Less => "<",
                    Compare::AtMost => "<=",
                    Compare::AtLeast => ">=",
                    Compare::More => ">",
                };
                write!(f, "{label} {sign} {value}")
            }
            Test::OneOf(values) => write!(f, "{label} in ({})", list(values)),
            Test::NoneOf(values) => write!(f, "{label} not in ({})", list(values)),
            Test::Yes => f.write_str(label),
            Test::No => write!(f, "not {label}"),
        }
    }
}

impl Constraint {
    /// Reads one constraint; the error says what is wrong with it and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |why: &str| {
            format!(
                "the constraint {text:?} cannot be read: {why}. Write it like one of: memory_mib >= 4096 · vendor = intel \
                 · firmware != bios · model in (158, 165) · model not in (1, 2) · vmx.unrestricted · not nested"
            )
        };
        if text.len() > CONSTRAINT_BYTES {
            return Err(wrong("it is too long"));
        }
        if let Some(rest) = text.strip_prefix("not ").or_else(|| text.strip_prefix('!')) {
            return Ok(Self { label: label(rest).map_err(|why| wrong(&why))?, test: Test::No });
        }
        let end = text.find(|c: char| !is_label(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let name = label(name).map_err(|why| wrong(&why))?;
        let rest = rest.trim();
        let test = Self::parse_test(rest).map_err(|why| wrong(&why))?;
        Ok(Self { label: name, test })
    }

    fn parse_test(rest: &str) -> Result<Test, String> {
        if rest.is_empty() {
            return Ok(Test::Yes);
        }
        if let Some(list) = rest.strip_prefix("not in") {
            return values(list).map(Test::NoneOf);
        }
        if let Some(list) = rest.strip_prefix("in ").or_else(|| rest.starts_with("in(").then(|| &rest[2..])) {
            return values(list).map(Test::OneOf);
        }
        // Two-character signs first: `<=` begins like `<`.
        for (sign, compare) in
            [("<=", Compare::AtMost), (">=", Compare::AtLeast), ("<", Compare::Less), (">", Compare::More)]
        {
            if let Some(bound) = rest.strip_prefix(sign) {
                let bound = value(bound)?;
                if number(&bound).is_none() {
                    return Err(format!("{bound:?} is not a number"));
                }
                return Ok(Test::Number(compare, bound));
            }
        }
        if let Some(other) = rest.strip_prefix("!=") {
            return value(other).map(Test::Differs);
        }
        if let Some(same) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
            return value(same).map(Test::Equal);
        }
        Err(format!("{rest:?} is no comparison"))
    }

    /// Whether a machine satisfies it.
    #[must_use]
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        let has = facts.get(&self.label);
        match (&self.test, has) {
            (Test::No, has) => has.is_none_or(|has| NO.contains(&has)),
            (_, None) => false,
            (Test::Yes, Some(has)) => !NO.contains(&has),
            (Test::Equal(wanted), Some(has)) => wanted == has,
            (Test::Differs(other), Some(has)) => other != has,
            (Test::OneOf(wanted), Some(has)) => wanted.contains(has),
            (Test::NoneOf(others), Some(has)) => !others.contains(has),
            (Test::Number(compare, bound), Some(has)) => match (number(has), number(bound)) {
                (Some(has), Some(bound)) => {
                    let order = order(&has, &bound);
                    match compare {
                        Compare::Less => order == Ordering::Less,
                        Compare::AtMost => order != Ordering::Greater,
                        Compare::AtLeast => order != Ordering::Less,
                        Compare::More => order == Ordering::Greater,
                    }
                }
                _ => false,
            },
        }
    }

    /// What a machine has instead, for people.
    #[must_use]
    pub fn found(&self, facts: &Facts<'_>) -> String {
        match facts.get(&self.label) {
            Some(has) => format!("{} is {has}", self.label),
            None => format!("it has no label {}", self.label),
        }
    }
}

fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

fn label(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = (1..=100).contains(&text.len()) && !text.starts_with('.') && text.chars().all(is_label);
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no label")) }
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = !text.is_empty() && !text.chars().any(|c| c.is_control() || "=<>!(),".contains(c));
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no value")) }
}

fn values(text: &str) -> Result<BTreeSet<String>, String> {
    let inside = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    inside.ok_or("a list stands in parentheses")?.split(',').map(value).collect()
}

/// A number as its pieces: `4096`, `0xf0`, `6.1.2`. Pieces between dots are compared one by one, as in versions.
fn number(text: &str) -> Option<Vec<u64>> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return Some(vec![u64::from_str_radix(hex, 16).ok()?]);
    }
    text.split('.')
        .map(|piece| if piece.bytes().all(|byte| byte.is_ascii_digit()) { piece.parse().ok() } else { None })
        .collect()
}

fn order(a: &[u64], b: &[u64]) -> Ordering {
    let length = a.len().max(b.len());
    let piece = |number: &[u64], at: usize| number.get(at).copied().unwrap_or(0);
    (0..length).map(|at| piece(a, at).cmp(&piece(b, at))).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// A whole selector in its canonical form: equal ones have equal keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Labels,
    requires: BTreeSet<Constraint>,
}

impl Selector {
    /// From labels that must be equal and constraints as text.
    pub fn new(labels: &Labels, requires: &[String]) -> Result<Self, String> {
        if requires.len() > CONSTRAINTS_MAX {
            return Err(format!("at most {CONSTRAINTS_MAX} constraints"));
        }
        let mut this = Self { labels: labels.clone(), requires: BTreeSet::new() };
        for text in requires {
            let constraint = Constraint::parse(text)?;
            // An equality is an equality wherever it was written.
            let Test::Equal(wanted) = &constraint.test else {
                this.requires.insert(constraint);
                continue;
            };
            if let Some(other) = this.labels.insert(constraint.label.clone(), wanted.clone())
                && other != *wanted
            {
                let label = &constraint.label;
                return Err(format!("no machine can have {label} = {other} and {label} = {wanted} at once"));
            }
        }
        Ok(this)
    }

    /// From what the ledger keeps. A constraint that this version cannot read is an error: to leave it out would give
    /// jobs machines that they must not have.
    pub fn stored(labels: &Labels, requires: &[String]) -> Result<Self, String> {
        let requires = requires.iter().map(|text| Constraint::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { labels: labels.clone(), requires })
    }

    /// Labels that must be equal.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The other constraints, canonical.
    #[must_use]
    pub fn requires(&self) -> Vec<String> {
        self.requires.iter().map(ToString::to_string).collect()
    }

    /// Every constraint, equalities first.
    pub fn constraints(&self) -> impl Iterator<Item = Constraint> {
        let equal =
            |(label, value): (&String, &String)| Constraint { label: label.clone(), test: Test::Equal(value.clone()) };
        self.labels.iter().map(equal).chain(self.requires.iter().cloned())
    }

    /// The text under which equal selectors share a row. One of labels only has the key it always had.
    #[must_use]
    pub fn key(&self) -> String {
        let labels = serde_json::to_string(&self.labels).expect("a map of strings is JSON");
        if self.requires.is_empty() { labels } else { format!("{labels} {}", self.requires().join(" & ")) }
    }

    /// Whether a machine satisfies all of it.
    #[must_use]
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        self.labels.iter().all(|(label, wanted)| facts.get(label) == Some(wanted.as_str()))
            && self.requires.iter().all(|constraint| constraint.holds(facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn holds(constraint: &str) -> bool {
        let labels = labels(&[
            ("memory_mib", "8192"),
            ("vendor", "intel"),
            ("vmx.unrestricted", "1"),
            ("nested", "0"),
            ("microcode", "0xf0"),
            ("bios", "6.10"),
            ("model", "158"),
        ]);
        let facts = Facts { name: "m1", driver: "qemu", controller: "lab-a", labels: &labels, seen: &Labels::new() };
        Constraint::parse(constraint).unwrap().holds(&facts)
    }

    #[test]
    fn comparisons_are_of_numbers_and_versions_not_of_text() {
        for yes in [
            "memory_mib >= 4096",
            "memory_mib>8191",
            "memory_mib <= 8192",
            "microcode > 0xde",
            "microcode < 256",
            "bios > 6.9",
            "bios >= 6.10.0",
            "vendor = intel",
            "vendor == intel",
            "vendor != amd",
            "name = m1",
            "driver in (qemu, bochs)",
            "controller = lab-a",
            "model not in (1, 2)",
            "vmx.unrestricted",
            "not nested",
            "!absent",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in
            ["memory_mib < 8192", "memory_mib > 10000", "vendor > 3", "nested", "absent", "not vendor", "bios < 6.2"]
        {
            assert!(!holds(no), "{no}");
        }
    }

    #[test]
    fn a_machine_that_does_not_say_satisfies_no_comparison() {
        for unknown in ["firmware != bios", "firmware not in (bios)", "cores >= 1", "firmware = efi"] {
            assert!(!holds(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_what_would_be_right() {
        for (wrong, why) in [
            ("memory >= much", "\"much\" is not a number"),
            ("memory => 4096", "no value"),
            ("memory ~ 4", "no comparison"),
            ("model in 1, 2", "parentheses"),
            ("model in ()", "no value"),
            ("= 4", "no label"),
            ("", "no label"),
            ("memory >=", "no value"),
        ] {
            let error = Constraint::parse(wrong).unwrap_err();
            assert!(error.contains(why) && error.contains("memory_mib >= 4096"), "{wrong}: {error}");
        }
    }

    #[test]
    fn equal_selectors_have_equal_keys_however_they_were_written() {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let one = Selector::new(&labels(&[("a", "1")]), &texts(&["b>=2", "c in (y,x)", "d = 4"])).unwrap();
        let two = Selector::new(&labels(&[("d", "4")]), &texts(&["c in (x, y)", " b >= 2 ", "a=1", "b >= 2"])).unwrap();
        assert_eq!(one.key(), two.key());
        assert_eq!(Selector::stored(one.labels(), &one.requires()), Ok(one));
        assert!(Selector::stored(&Labels::new(), &texts(&["memory ~ 4"])).is_err(), "never left out in silence");
        let plain = Selector::new(&labels(&[("a", "1")]), &[]).unwrap();
        assert_eq!(plain.key(), r#"{"a":"1"}"#, "as before there were constraints");
        let error = Selector::new(&labels(&[("a", "1")]), &texts(&["a = 2"])).unwrap_err();
        assert!(error.contains("a = 1 and a = 2"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_is_read_the_same_again(text in "[a-c.]{0,3} ?(=|!=|<=|>|in|not in)? ?[(]?[0-9a-c, ]{0,6}[)]?") {
            if let Ok(constraint) = Constraint::parse(&text) {
                proptest::prop_assert_eq!(Constraint::parse(&constraint.to_string()), Ok(constraint));
            }
        }
    }
}
