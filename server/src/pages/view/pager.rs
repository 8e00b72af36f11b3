//! The pages of something long: which of them this is, and the way to the others.

use crate::pages::format::count;

/// Where a page stands among the others; the links are queries.
#[derive(Debug)]
pub struct Pager {
    /// Its number, from 1.
    pub page: String,
    /// How many there are.
    pub pages: String,
    /// The first and the one before, unless this is the first.
    pub before: Option<(String, String)>,
    /// The one after and the last, unless this is the last.
    pub after: Option<(String, String)>,
}

impl Pager {
    /// The page that begins at `start`, where pages begin at multiples of `size` up to `last`; nothing if it is the only one.
    pub fn new(start: u64, last: u64, size: u64, link: impl Fn(u64) -> String) -> Option<Self> {
        (last > 0).then(|| Self {
            page: count(start / size + 1),
            pages: count(last / size + 1),
            before: start.checked_sub(size).map(|previous| (link(0), link(previous))),
            after: (start < last).then(|| (link(start + size), link(last))),
        })
    }
}
