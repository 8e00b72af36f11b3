//! The dashboard's style sheet, scripts and mark, inside the binary.
//!
//! All files share one directory named by the hash of them all (`/static/<hash>/…`), so a browser may keep them for
//! ever, and relative imports between scripts still work. A page of an older server may ask for an older hash: it gets
//! today's file, which is then not to be kept.

use std::sync::LazyLock;

/// One embedded file.
#[derive(Debug)]
pub struct Asset {
    /// Its name inside the directory.
    pub name: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: &'static [u8],
}

macro_rules! assets {
    ($($name:literal: $media_type:literal),* $(,)?) => {
        &[$(Asset {
            name: $name,
            media_type: $media_type,
            bytes: include_bytes!(concat!("../../../web/static/", $name)),
        }),*]
    };
}

/// Every embedded file.
pub static ASSETS: &[Asset] = assets! {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
};

static HASH: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for asset in ASSETS {
        hasher.update(asset.name.as_bytes()).update(&[0]).update(&(asset.bytes.len() as u64).to_le_bytes());
        hasher.update(asset.bytes);
    }
    hasher.finalize().to_hex()[..16].to_owned()
});

/// The name of the directory that holds today's files.
#[must_use]
pub fn hash() -> &'static str {
    &HASH
}

/// The path of a file, for templates.
#[must_use]
pub fn url(name: &str) -> String {
    debug_assert!(find(name).is_some(), "no asset {name}");
    format!("/static/{}/{name}", hash())
}

/// The file of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}
