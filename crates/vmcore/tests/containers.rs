//! Every container gives the same memory, and says honestly what it lacks.

#[expect(dead_code, reason = "each test binary uses a part of the shared fixture")]
mod synthetic;

use crashyard_vmcore::{
    Dump, Error, Fault, Format, Limits, Options, PAGE, PageState, ReadAt, Summary, Task, capsule, rearranged, summarise,
};
use synthetic::dump::{self, Contents, PACKINGS, Packing};
use synthetic::{PLAIN, world};

fn summary(bytes: &[u8]) -> Summary {
    summarise(&bytes, &Limits::default()).unwrap()
}

fn contents() -> Contents {
    let mut contents = world(PLAIN).contents;
    contents.pages.insert(10, Box::new([0; PAGE]));
    contents.excluded.insert(11);
    contents
}

#[test]
fn every_container_gives_the_same_summary() {
    let contents = contents();
    let plain = dump::elf(&contents, false);
    let want = summary(&plain);
    assert_eq!(want.release, "9.9.9-synthetic");
    assert_eq!(want.format, Format::Elf);
    let same = |bytes: &[u8], format| {
        let got = summary(bytes);
        assert_eq!(got.format, format);
        assert_eq!(Summary { format: want.format, ..got }, want);
    };
    same(&dump::elf(&contents, true), Format::Elf);
    same(&dump::flatten(&plain), Format::FlattenedElf);
    for packing in PACKINGS {
        let bytes = dump::kdump(&contents, packing, None);
        same(&bytes, Format::Kdump);
        same(&dump::flatten(&bytes), Format::FlattenedKdump);
    }
}

#[test]
fn the_summary_holds_what_a_verdict_needs() {
    let got = summary(&dump::elf(&contents(), false));
    assert_eq!(got.build_id.as_deref(), Some("00ff00ff"));
    assert_eq!(got.crash_time, Some(1_700_000_000));
    assert_eq!(got.panic_message.as_deref(), Some("made up"));
    assert_eq!(got.cpus_online, Some(2));
    assert_eq!(got.prstatus.iter().map(|c| (c.cpu, c.pid)).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    let lines: Vec<_> = got.dmesg.iter().map(crashyard_vmcore::DmesgLine::stamped).collect();
    let want = [
        "[    1.500000] Linux version 9.9.9",
        "[    3.000000] first",
        "[    3.000000] second",
        "[    4.500000] Kernel panic - not syncing: made up",
    ];
    assert_eq!(lines, want);
    assert!(got.dmesg.iter().all(|l| l.level == 4));
    assert_eq!(got.warnings, Vec::<String>::new());
}

#[test]
fn present_zero_excluded_and_absent_pages_are_told_apart() {
    let contents = contents();
    for bytes in [dump::elf(&contents, false), dump::kdump(&contents, Packing::Zstd, None)] {
        let source = bytes.as_slice();
        let dump = Dump::open(&source, &Limits::default()).unwrap();
        let mut page = [1u8; PAGE];
        let zero = if dump.format() == Format::Kdump { PageState::Zero } else { PageState::Present };
        assert_eq!(dump.page(10, &mut page), Ok(zero));
        assert_eq!(page, [0u8; PAGE]);
        assert_eq!(dump.page(11, &mut page), Err(Fault::Excluded(11 << 12)));
        assert_eq!(dump.page(12, &mut page), Err(Fault::Absent(12 << 12)));
        assert_eq!(dump.page(u64::MAX >> 12, &mut page), Err(Fault::Absent(!0xfff)));
        for (pfn, want) in &contents.pages {
            dump.page(*pfn, &mut page).unwrap();
            assert!(page == **want, "page {pfn:#x}");
        }
        assert_eq!(dump.page_counts().excluded, 1);
        assert_eq!(dump.page_counts().present, contents.pages.len() as u64);
    }
}

#[test]
fn a_dump_cut_anywhere_is_never_taken_for_a_whole_one() {
    let contents = contents();
    let elf = dump::elf(&contents, false);
    let kdump = dump::kdump(&contents, Packing::Raw, None);
    for whole in [&elf, &kdump, &dump::flatten(&elf), &dump::flatten(&kdump)] {
        let steps = (0..64).map(|i| whole.len() * i / 64).chain((1..200).map(|i| whole.len() - i));
        for len in steps {
            match summarise(&&whole[..len], &Limits::default()) {
                Err(Error::Truncated { have, need }) => assert!(have < need),
                Err(Error::NotADump) => assert!(len < 16),
                other => panic!("cut to {len} of {}: {other:?}", whole.len()),
            }
        }
    }
}

#[test]
fn a_flattened_dump_is_put_together_as_its_writer_meant_it() {
    let kdump = dump::kdump(&contents(), Packing::Zlib, None);
    let flat = dump::flatten(&kdump);
    let plain = rearranged(&flat, &Limits::default()).unwrap().expect("it is flattened");
    let mut bytes = vec![0; usize::try_from(plain.len()).unwrap()];
    let mut at = 0;
    while at < bytes.len() {
        at += plain.read_at(at as u64, &mut bytes[at..]).unwrap();
    }
    assert!(bytes == kdump);
    assert!(rearranged(&kdump, &Limits::default()).unwrap().is_none());
    let cut = &flat[..flat.len() - 1];
    assert!(matches!(rearranged(&cut, &Limits::default()), Err(Error::Truncated { .. })));
}

#[test]
fn of_a_stream_that_is_still_arriving_what_is_read_is_true() {
    let contents = contents();
    let partial = Options { partial: true, ..Options::default() };
    for whole in
        [dump::stream(&dump::elf(&contents, false)), dump::stream(&dump::kdump(&contents, Packing::Zstd, None))]
    {
        let wanted = capsule(&whole, &Options::default()).unwrap();
        let mut readable = 0;
        for len in (0..200).map(|i| whole.len() * i / 200) {
            let Ok(got) = capsule(&&whole[..len], &partial) else { continue };
            readable += 1;
            assert_eq!((&got.release, &got.build_id), (&wanted.release, &wanted.build_id));
            assert!(!got.warnings.is_empty(), "cut to {len} of {}", whole.len());
            assert!(got.dmesg.iter().all(|line| wanted.dmesg.contains(line)), "cut to {len} of {}", whole.len());
            assert!(got.panic_message.is_none() || got.panic_message == wanted.panic_message);
            let known = |task: &Task| wanted.tasks.iter().any(|t| (t.pid, &t.comm) == (task.pid, &task.comm));
            assert!(got.tasks.iter().all(known), "cut to {len} of {}", whole.len());
        }
        assert!(readable > 20, "readable at {readable} of 200 lengths");
    }
}

#[test]
fn a_dump_that_its_writer_gave_up_on_is_refused() {
    let mut bytes = dump::kdump(&contents(), Packing::Zlib, None);
    bytes[424] |= 8;
    assert!(matches!(summarise(&bytes, &Limits::default()), Err(Error::Incomplete)));
}

#[test]
fn parts_of_a_split_dump_read_as_one_in_any_order() {
    let contents = contents();
    let middle = *contents.pages.keys().nth(contents.pages.len() / 2).unwrap();
    let last = contents.pages.keys().last().unwrap() + 1;
    let parts = [
        dump::kdump(&contents, Packing::Zlib, Some(middle..last)),
        dump::kdump(&contents, Packing::Zstd, Some(0..middle)),
    ];
    let sources: Vec<&dyn ReadAt> = parts.iter().map(|p| p as &dyn ReadAt).collect();
    let dump = Dump::open_split(&sources, &Limits::default()).unwrap();
    let mut page = [0u8; PAGE];
    for (pfn, want) in &contents.pages {
        dump.page(*pfn, &mut page).unwrap();
        assert!(page == **want, "page {pfn:#x}");
    }
    assert_eq!(dump.page_counts().present, contents.pages.len() as u64);
    let other = dump::elf(&contents, false);
    assert!(Dump::open_split(&[&parts[0], &other], &Limits::default()).is_err());
}

#[test]
fn what_is_no_dump_is_said_to_be_none() {
    assert!(matches!(summarise(&&b"hello, I am a text file"[..], &Limits::default()), Err(Error::NotADump)));
    let mut arm = dump::elf(&contents(), false);
    arm[18] = 183;
    assert!(matches!(summarise(&arm, &Limits::default()), Err(Error::Unsupported(_))));
    let mut old = dump::kdump(&contents(), Packing::Raw, None);
    old[8] = 5;
    assert!(matches!(summarise(&old, &Limits::default()), Err(Error::Unsupported(_))));
}

#[test]
fn without_vmcoreinfo_the_error_says_what_to_do() {
    let mut contents = contents();
    contents.notes.retain(|n| n.0 != "VMCOREINFO");
    let error = summarise(&dump::elf(&contents, false), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("-device vmcoreinfo"), "{error}");
}
