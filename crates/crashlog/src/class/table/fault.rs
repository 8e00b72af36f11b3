//! Exceptions of all architectures, stack overflows, and BUG().

use super::{BAD_ACCESS, FAULT, HEADER_THEN_TRACE, LIST, POINTER_OR_HEADER, TRACE, USERCOPY, covered, group};
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

/// Deep recursion: the frame at the top is chance, the way in is not.
const OVERFLOW: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::AboveEntry, skip: &[] };

const PAGING: &str = "BUG: unable to handle kernel paging request in {frame}";
const NULL: &str = "BUG: unable to handle kernel NULL pointer dereference in {frame}";

pub const GROUPS: &[Group] = &[
    // x86 page faults.
    group(
        "to handle ",
        &["nable to handle kernel paging request for unknown", "echo "],
        &[
            Class::new(K::PageFault, "BUG: unable to handle kernel paging request", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: unable to handle page fault for address", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "BUG: unable to handle kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: Unable to handle kernel data access", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: Unable to handle kernel instruction fetch", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: unable to handle kernel", "BUG: unable to handle kernel")
                .damaged("the header is cut"),
            Class::new(K::PageFault, "BUG: Unable to handle kernel", "BUG: unable to handle kernel")
                .damaged("the header is cut"),
            // arm, arm64, riscv, powerpc, mips.
            Class::new(K::NullDereference, "Unable to handle kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "Unable to handle kernel pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "Unable to handle kernel ", PAGING).alts(BAD_ACCESS).frames(&FAULT),
        ],
    ),
    group(
        "ernel NULL pointer dereference",
        &[],
        &[
            Class::new(K::NullDereference, "BUG: kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "BUG: Kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
        ],
    ),
    group(
        "neral protection fault",
        &["traps: ", "error:0 in", "trap_type", "general protection fault ip:", "general protection ip:"],
        &[Class::new(K::GeneralProtection, "general protection fault", "general protection fault in {frame}")
            .alts(BAD_ACCESS)
            .frames(&FAULT)],
    ),
    group(
        "k segment: ",
        &[],
        &[Class::new(K::GeneralProtection, "stack segment: ", "stack segment fault in {frame}")
            .alts(BAD_ACCESS)
            .frames(&FAULT)],
    ),
    covered(
        "divide error: ",
        &[],
        &[Class::new(K::DivideError, "divide error: ", "divide error in {frame}").frames(&FAULT)],
    ),
    covered(
        "invalid opcode: ",
        &[],
        &[Class::new(K::InvalidOpcode, "invalid opcode: ", "invalid opcode in {frame}").frames(&FAULT).detail()],
    ),
    group(
        "Unhandled ",
        &[],
        &[
            Class::new(K::Oops, "Unhandled fault: ", "Unhandled fault in {frame}").alts(BAD_ACCESS).frames(&FAULT),
            Class::new(K::Oops, "^Unhandled prefetch abort: ", "Unhandled prefetch abort in {frame}").frames(&FAULT),
            Class::new(K::Oops, "^Unhandled kernel unaligned access[#", "Unhandled kernel unaligned access in {frame}")
                .frames(&FAULT),
        ],
    ),
    group(
        "Alignment trap: ",
        &[],
        &[Class::new(K::Oops, "Alignment trap: ", "Alignment trap in {frame}").frames(&FAULT)],
    ),
    group(
        "al error: ",
        &[],
        &[
            Class::new(K::Bug, "Internal error: Oops - BUG", "kernel BUG in {frame}").frames(&FAULT).detail(),
            Class::new(K::Oops, "Internal error: ", "Internal error in {frame}")
                .alts(BAD_ACCESS)
                .frames(&FAULT)
                .detail(),
        ],
    ),
    // An oops whose first line is lost, and architectures that print nothing before it.
    group(
        "Oops",
        &["Oops: retry", "kernel.panic_on_oops"],
        &[
            // powerpc; then x86's exceptions that have no class of their own, as kernels since 6.10 say them.
            Class::new(K::Oops, "^Oops: {}, sig: {:n} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops: Oops: {} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops: int3: 0000 [#", "int3 in {frame}").frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops: {what}: {:w} [#", "{what} in {frame}").frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops: {} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops - {what} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "Oops[#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "Kernel Oops", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
        ],
    ),
    group(
        "double fault",
        &[],
        &[
            Class::new(K::DoubleFault, "PANIC: double fault", "PANIC: double fault in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
            Class::new(K::DoubleFault, "^double fault: ", "PANIC: double fault in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
        ],
    ),
    group(
        "guard page was hit",
        &[],
        &[
            Class::new(K::StackOverflow, "BUG: stack guard page was hit", "BUG: stack guard page was hit in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&OVERFLOW)
                .traceless(),
            Class::new(
                K::StackOverflow,
                "BUG: TASK stack guard page was hit",
                "BUG: stack guard page was hit in {frame}",
            )
            .alts(&["stack-overflow in {frame}"])
            .frames(&OVERFLOW)
            .traceless(),
            Class::new(K::StackOverflow, "stack guard page was hit", "BUG: stack guard page was hit in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&OVERFLOW)
                .traceless(),
        ],
    ),
    group(
        "Insufficient stack space",
        &[],
        &[Class::new(
            K::StackOverflow,
            "Insufficient stack space to handle exception",
            "BUG: stack guard page was hit in {frame}",
        )
        .alts(&["stack-overflow in {frame}"])
        .frames(&OVERFLOW)],
    ),
    group(
        "k overflow",
        &[],
        &[
            Class::new(K::StackOverflow, "^Kernel stack overflow", "kernel stack overflow in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
            Class::new(K::StackOverflow, "^do_IRQ: {}stack overflow", "kernel stack overflow in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&TRACE),
            Class::new(K::StackOverflow, "BUG: {} stack overflow", "kernel stack overflow in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
        ],
    ),
    // BUG() and what it is used for.
    group(
        "ernel BUG ",
        &["Kernel BUG at %"],
        &[
            Class::new(K::Usercopy, "kernel BUG at mm/usercopy.c", "BUG: bad usercopy in {frame}").frames(&USERCOPY),
            Class::new(K::ListCorruption, "kernel BUG at lib/list_debug.c", "BUG: corrupted list in {frame}")
                .frames(&LIST),
            // Rust panics print their message first and end in BUG().
            Class::new(K::Bug, "kernel BUG at rust/helpers/", "kernel BUG in {frame}")
                .frames(&POINTER_OR_HEADER)
                .detail(),
            Class::new(K::Bug, "kernel BUG at {}:", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Bug, "Kernel BUG at {}", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Bug, "^Kernel BUG [#", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER).detail(),
            Class::new(K::Bug, "kernel BUG ", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
        ],
    ),
    group(
        "CFI failure at ",
        &[],
        &[Class::new(K::Bug, "CFI failure at {func:f}+0x", "CFI failure in {frame}").frames(&HEADER_THEN_TRACE)],
    ),
    // mips and loongarch count their oopses right behind the words.
    group(
        "ted[#",
        &[],
        &[Class::new(K::Bug, "^Kernel bug detected[#", "kernel BUG in {frame}").frames(&FAULT).detail()],
    ),
    group(
        "ode[#",
        &[],
        &[Class::new(K::Oops, "^{what} in kernel code[#", "{what} in {frame}").frames(&FAULT).detail()],
    ),
    // s390's program checks, and x86's exceptions that have no class of their own (`int3: 0000 [#1]`).
    group(
        " ilc:",
        &[],
        &[Class::new(K::Oops, "^{what}: {:w} ilc:{:n} [#", "{what} in {frame}").frames(&FAULT).detail()],
    ),
    covered(
        "0000 [#",
        &[],
        &[
            Class::new(K::Oops, "^int3: 0000 [#", "int3 in {frame}").frames(&FAULT).detail(),
            Class::new(K::Oops, "^{what}: 0000 [#", "{what} in {frame}").frames(&FAULT).detail(),
        ],
    ),
];
