//! What belongs to a report that is being collected: headers that continue it, and lines that are visibly part of one.

use crate::class::{Found, Join};
use crate::model::Kind;
use crate::trace;

/// Whether a header belongs to an open report that has no trace yet.
pub fn joins(open: Found, new: Found) -> bool {
    let (open, new) = (open.class().kind, new.class());
    let stall = matches!(open, Kind::RcuStall | Kind::SoftLockup | Kind::HardLockup | Kind::HungTask);
    match new.join {
        // A crash on the way from a panic to the next kernel is one of its own, whatever it begins with.
        Join::Detail => !matches!(open, Kind::Panic | Kind::Sysrq),
        Join::Consequence => true,
        // Without caller ids, memory shortage elsewhere would tear a panic's report apart.
        Join::Own if matches!(new.kind, Kind::OutOfMemory | Kind::AllocationFailure) => {
            matches!(open, Kind::Panic | Kind::Sysrq | Kind::StackOverflow)
        }
        // A stall is announced once for the CPU itself and once for the others, and hardware says several lines about one
        // error, each of which may be all there is. A warning in the middle of a stall's header comes from the code that
        // prints the stall.
        Join::Own => {
            let more = matches!(open, Kind::RcuStall | Kind::MachineCheck | Kind::HardwareError) && new.kind == open;
            more && !new.head.starts_with("Kernel panic") || stall && new.kind == Kind::Warning
        }
    }
}

/// Whether a line that is no trace entry is visibly part of a report.
pub fn belongs(text: &[u8]) -> bool {
    let t = text.trim_ascii_start();
    let Some(first) = t.first() else { return false };
    let words: &[&[u8]] = match first {
        b'-' => &[b"---[ end", b"-> #", b"--- interrupt", b"------------[ cut here", b"other info", b"---"],
        b'=' => &[b"====="],
        b'A' => &[b"Allocated", b"Asynchronous"],
        b'B' => &[b"Backtrace", b"Bytes "],
        b'C' => &[b"CPU", b"Call ", b"Code:", b"CR", b"CS:", b"Comm:", b"CFAR"],
        b'D' => &[b"DR", b"DS:", b"DAR", b"Disabling lock debugging", b"Dumping ftrace", b"DSISR"],
        b'E' => &[b"EIP", b"EAX", b"ESI", b"EFLAGS", b"ESR", b"ES:"],
        b'F' => &[b"FS:", b"Freed", b"FSC", b"FAR"],
        b'G' => &[b"GPR", b"GS:"],
        b'H' => &[b"Hardware name", b"HIGH"],
        b'I' => &[b"IP:", b"Internal error", b"Instruction dump", b"IRQ", b"INFO: lockdep"],
        b'K' => &[b"Kernel Offset", b"Kernel panic", b"KASAN:", b"Krnl", b"Kernel Code"],
        b'L' => &[b"LR", b"Last "],
        b'M' => &[b"Modules linked", b"Mem abort", b"Memory state", b"MSR"],
        b'N' => &[b"NIP", b"NMI backtrace"],
        b'O' => &[b"Oops", b"Object"],
        b'P' => &[b"PGD", b"PKRU", b"PC is", b"PID", b"Pid:", b"Possible unsafe", b"Padding", b"Process "],
        b'R' => &[b"RIP", b"RSP", b"RAX", b"RDX", b"RBP", b"R1", b"R0", b"R8", b"Read of", b"Rebooting", b"Register"],
        b'S' => &[b"Stack", b"Showing", b"Sending NMI", b"SP:", b"ST ", b"Second"],
        b'T' => &[b"The buggy", b"Tainted:", b"This frame", b"The ", b"TASK"],
        b'U' => &[b"Uninit", b"Unable"],
        b'W' => &[b"Workqueue", b"Write of"],
        b'#' => &[b"#"],
        b'<' => &[b"<TASK>", b"</TASK>", b"<IRQ>", b"</IRQ>", b"<NMI>", b"</NMI>", b"<EOI>"],
        b'>' => &[b">ff"],
        b'b' => &[b"backtrace"],
        b'e' => &[b"epc", b"exception"],
        b'f' => &[b"ff"],
        b'h' => &[b"hardirq"],
        b'i' => &[b"irq event", b"invalid opcode", b"is trying", b"ieee"],
        b'l' => &[b"lr ", b"lock"],
        b'p' => &[b"pc ", b"page", b"pstate", b"pgd"],
        b's' => &[b"sp ", b"softirq", b"stack backtrace", b"shadow"],
        b'r' => &[b"ra ", b"r1", b"r3", b"r7"],
        b't' => &[b"task", b"the existing"],
        b'x' => &[b"x1", b"x2", b"x3", b"x5", b"x6", b"x8", b"x0"],
        _ => &[],
    };
    words.iter().any(|w| t.starts_with(w)) || trace::pointer(t).is_some()
}
