//! Pages, leaks, slabs, and memory that runs out.

use super::group;
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

/// Where `page_owner` is on it says who allocated the page, which tells more than who happened to free it.
const BAD_PAGE: Recipe = Recipe {
    from: &[Source::Under("page last allocated"), Source::Trace],
    pick: Pick::First,
    skip: &[
        "bad_page",
        "free_pages",
        "free_unref",
        "free_frozen",
        "__free_page",
        "free_page",
        "put_page",
        "rmqueue",
        "get_page_from_freelist",
        "alloc_page",
        "alloc_frozen",
        "alloc_slab",
        "new_slab",
        "slab",
        "folio_put",
        "kfree",
        "check_new_page",
        "post_alloc",
        "release_pages",
        "pagevec",
        "folio_batch",
        "kmem_cache",
        "kmalloc",
        "_put_page",
        "vmalloc",
        "folio_add_lru",
        "lru_add",
        "page_frag_free",
        "page_pool",
        "extract_iter",
        "folio_alloc",
        "folios_put",
        "__get_free_pages",
        "vfree",
        "alloc_",
    ],
};
const LEAK: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "kmemleak",
        "kmalloc",
        "kcalloc",
        "kzalloc",
        "vmalloc",
        "mmap",
        "kmem",
        "slab",
        "alloc",
        "create_object",
        "idr_get",
        "list_lru_init",
        "kasprintf",
        "kvasprintf",
        "pcpu_create",
        "strdup",
        "strndup",
        "memdup",
        "__kmem",
        "kobject_",
    ],
};

/// SLUB's checks report themselves, not who wrote where it should not have.
const SLAB: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "check_object",
        "check_bytes",
        "check_slab",
        "check_pad",
        "debug_processing",
        "on_freelist",
        "object_err",
        "free_consistency",
        "alloc_consistency",
        "validate_slab",
        "cache_free_debugcheck",
        "cache_alloc_debugcheck",
        "verify_redzone",
        "__free_slab",
        "discard_slab",
        "rcu_do_batch",
    ],
};
const ALLOCATION: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["alloc", "slab", "kmem"] };

pub const GROUPS: &[Group] = &[
    group(
        "BUG ",
        // The old sanitizer used the same words inside its report.
        &["kasan: bad access"],
        &[
            Class::new(K::SlabCorruption, "^BUG {cache} (Not tainted): {what}", "BUG: {what} in {frame}")
                .alts(&["slab-corruption in {frame}"])
                .frames(&SLAB),
            Class::new(K::SlabCorruption, "^BUG {cache} (Tainted: {}): {what}", "BUG: {what} in {frame}")
                .alts(&["slab-corruption in {frame}"])
                .frames(&SLAB),
        ],
    ),
    group(
        "lab error in ",
        &[],
        &[Class::new(K::SlabCorruption, "^slab error in {}: {what}", "BUG: {what} in {frame}")
            .alts(&["slab-corruption in {frame}"])
            .frames(&SLAB)],
    ),
    group(
        "BUG: memory leak",
        &[],
        &[Class::new(K::MemoryLeak, "BUG: memory leak", "memory leak in {frame}").frames(&LEAK)],
    ),
    group(
        "unreferenced object 0x",
        &[],
        &[Class::new(K::MemoryLeak, "^unreferenced object 0x", "memory leak in {frame}").frames(&LEAK).detail()],
    ),
    group(
        "INFO: Freed in",
        &[],
        &[Class::new(K::SlabCorruption, "INFO: Freed in {text}", "INFO: Freed in {text}")
            .damaged("the header of the slab report is missing")
            .detail()],
    ),
    group(
        "INFO: Allocated in",
        &[],
        &[Class::new(K::SlabCorruption, "INFO: Allocated in {text}", "INFO: Allocated in {text}")
            .damaged("the header of the slab report is missing")
            .detail()],
    ),
    group(
        "invoked oom-killer",
        &[],
        &[Class::new(K::OutOfMemory, "^{comm:w} invoked oom-killer", "out of memory: oom-killer invoked").traceless()],
    ),
    group(
        "n failure",
        &[],
        &[Class::new(K::AllocationFailure, "page allocation failure", "page allocation failure in {frame}")
            .frames(&ALLOCATION)],
    ),
    group(
        "Bad page ",
        &[],
        &[
            Class::new(K::BadPage, "BUG: Bad page state", "BUG: Bad page state in {frame}").frames(&BAD_PAGE),
            Class::new(K::BadPage, "BUG: Bad page map", "BUG: Bad page map"),
            Class::new(K::BadPage, "BUG: Bad page cache", "BUG: Bad page cache"),
        ],
    ),
    group(
        "Bad rss-counter state",
        &[],
        &[Class::new(K::BadPage, "BUG: Bad rss-counter state", "BUG: Bad rss-counter state").traceless()],
    ),
    group(
        "BUG: non-zero ",
        &[],
        &[
            Class::new(K::BadPage, "BUG: non-zero {what:w} on freeing mm", "BUG: non-zero {what} on freeing mm")
                .traceless(),
            Class::new(
                K::BadPage,
                "BUG: non-zero pgtables_bytes on freeing mm",
                "BUG: non-zero pgtables_bytes on freeing mm",
            )
            .traceless(),
        ],
    ),
];
