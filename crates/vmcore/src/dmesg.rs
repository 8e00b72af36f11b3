//! The kernel log: the printk ring buffer (5.10 and later), found by VMCOREINFO alone.
//!
//! Descriptors and infos are two arrays of 2^n entries, the text is a ring of blocks. A record counts when its descriptor
//! carries its own id and is committed or finalized; a crash may leave others half written, and those are counted.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::{Fault, Limits};
use crate::memory::Memory;
use serde::{Deserialize, Serialize};

/// Who printed a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Caller {
    /// The thread with this id.
    Thread(u32),
    /// A CPU outside any thread (early boot, interrupt).
    Cpu(u32),
}

/// One line of the kernel log. A record with newlines becomes several lines with the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmesgLine {
    /// Nanoseconds since boot, as printk counts them.
    pub ts_ns: u64,
    /// 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Who printed it, when the kernel records that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// The text, without time and level. May hold any bytes that were valid UTF-8: make it safe before showing it.
    pub text: String,
}

impl DmesgLine {
    /// The line as `dmesg` prints it.
    pub fn stamped(&self) -> String {
        let us = self.ts_ns / 1000;
        format!("[{:5}.{:06}] {}", us / 1_000_000, us % 1_000_000, self.text)
    }
}

/// The log and what was wrong with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub lines: Vec<DmesgLine>,
    /// Records that were being written when the kernel died.
    pub unfinished: u32,
    /// Records whose text is not in the dump.
    pub missing: u32,
}

impl Log {
    /// What is wrong with it, if anything.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        // The one that the crash interrupted is nothing to speak of.
        let unfinished = (self.unfinished > 1).then(|| format!("{} records are unfinished", self.unfinished));
        let missing = (self.missing > 0).then(|| format!("the text of {} records is not in the dump", self.missing));
        unfinished.into_iter().chain(missing).map(|what| format!("kernel log: {what}"))
    }
}

const ID_MASK: u64 = (1 << 62) - 1;
/// States of a descriptor whose text may be read: committed, finalized.
const READABLE: [u64; 2] = [1, 2];

/// Reads the whole log.
pub(crate) fn read(memory: &Memory, limits: &Limits) -> Result<Log, Fault> {
    let info = memory.info();
    let need = |name, value: Option<u64>| value.ok_or(Fault::NoSuch(name));
    let offset = |name| need(name, info.offset(name));
    let prb = memory.u64(need("prb", info.symbol("prb"))?)?;
    let ring = prb.wrapping_add(offset("printk_ringbuffer.desc_ring")?);
    let text_ring = prb.wrapping_add(offset("printk_ringbuffer.text_data_ring")?);
    let counter = info.offset("atomic_long_t.counter").unwrap_or(0);
    let at = |base: u64, name| Ok::<u64, Fault>(base.wrapping_add(offset(name)?));

    let count_bits = memory.u32(at(ring, "prb_desc_ring.count_bits")?)?;
    let size_bits = memory.u32(at(text_ring, "prb_data_ring.size_bits")?)?;
    let (desc_size, info_size) =
        (need("prb_desc", info.size("prb_desc"))?, need("printk_info", info.size("printk_info"))?);
    if count_bits > 32 || size_bits > 40 || !(8..=4096).contains(&desc_size) || !(20..=4096).contains(&info_size) {
        return Err(Fault::TooLarge(ring));
    }
    let count = 1u64 << count_bits;
    let head = memory.u64(at(ring, "prb_desc_ring.head_id")?.wrapping_add(counter))?;
    let tail = memory.u64(at(ring, "prb_desc_ring.tail_id")?.wrapping_add(counter))?;
    // Entries are read one by one: most of both arrays is unused after an ordinary boot. Of more than the limit, the newest.
    let most = (limits.log_bytes / desc_size.max(info_size)).min(count);
    let records = (head.wrapping_sub(tail) & ID_MASK).saturating_add(1).min(most);
    let descs = memory.u64(at(ring, "prb_desc_ring.descs")?)?;
    let infos = memory.u64(at(ring, "prb_desc_ring.infos")?)?;
    let data = memory.u64(at(text_ring, "prb_data_ring.data")?)?;
    let text = Text { memory, data, size: 1u64 << size_bits };

    let fields = Fields {
        state: (offset("prb_desc.state_var")? + counter) as usize,
        begin: (offset("prb_desc.text_blk_lpos")? + info.offset("prb_data_blk_lpos.begin").unwrap_or(0)) as usize,
        next: (offset("prb_desc.text_blk_lpos")? + info.offset("prb_data_blk_lpos.next").unwrap_or(8)) as usize,
        time: offset("printk_info.ts_nsec")? as usize,
        length: offset("printk_info.text_len")? as usize,
        caller: info.offset("printk_info.caller_id").map(|o| o as usize),
    };
    let mut log = Log::default();
    let mut desc = vec![0u8; desc_size as usize];
    let mut about = vec![0u8; info_size as usize];
    let mut text_left = limits.log_bytes;
    for back in (0..records).rev() {
        let id = head.wrapping_sub(back);
        let slot = id & (count - 1);
        let read = memory
            .read(descs.wrapping_add(slot * desc_size), &mut desc)
            .and_then(|()| memory.read(infos.wrapping_add(slot * info_size), &mut about));
        let state = u64_at(&desc, fields.state);
        if read.is_ok() && state & ID_MASK == id & ID_MASK && READABLE.contains(&(state >> 62)) {
            fields.record(&desc, &about, &text, &mut text_left, &mut log);
        } else {
            log.unfinished += 1;
        }
    }
    Ok(log)
}

/// The ring of text. It is read record by record: of a dump that is cut, what is there of the log still counts.
struct Text<'m, 'a> {
    memory: &'m Memory<'a>,
    data: u64,
    size: u64,
}

struct Fields {
    state: usize,
    begin: usize,
    next: usize,
    time: usize,
    length: usize,
    caller: Option<usize>,
}

impl Fields {
    fn record(&self, desc: &[u8], info: &[u8], text: &Text, left: &mut u64, log: &mut Log) {
        let (begin, next) = (u64_at(desc, self.begin), u64_at(desc, self.next));
        // Odd positions mean "no data": the text was lost or empty.
        if begin & 1 == 1 {
            return;
        }
        let (mut start, end) = (begin % text.size, next % text.size);
        // A block that would wrap starts again at 0.
        if begin / text.size != next / text.size && end != 0 {
            start = 0;
        }
        let body = start + 8;
        let length = u64::from(u16_at(info, self.length)).min(text.size.saturating_sub(body));
        let Some(rest) = left.checked_sub(length) else {
            log.missing += 1;
            return;
        };
        *left = rest;
        let mut raw = vec![0; length as usize];
        if text.memory.read(text.data.wrapping_add(body), &mut raw).is_err() {
            log.missing += 1;
            return;
        }
        let ts_ns = u64_at(info, self.time);
        // `struct printk_info`: text_len, facility, then flags:5 and level:3 in one byte, and the caller id after it.
        let level = info.get(self.length + 3).map_or(6, |b| b >> 5);
        let caller = self.caller.map(|at| u32_at(info, at)).map(|id| match id >> 31 {
            1 => Caller::Cpu(id & 0x7fff_ffff),
            _ => Caller::Thread(id),
        });
        for line in String::from_utf8_lossy(&raw).split('\n') {
            log.lines.push(DmesgLine { ts_ns, level, caller, text: line.to_owned() });
        }
    }
}
