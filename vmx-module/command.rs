// SPDX-License-Identifier: GPL-2.0

//! The command grammar. Parsing only; what commands do is in `control`.
//!
//! ```text
//! command = verb [number] ["cpu=" (number | "all")]
//! ```
//!
//! One command per write, words separated by blanks. States go to all online CPUs unless one is named; triggers act on the
//! CPU named, or on CPU 0. docs/VMX.md has the table of verbs.

use kernel::prelude::*;

use crate::cpu::State;

/// Where a command acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    All,
    One(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trigger {
    Panic,
    Oops,
    NmiPanic,
    IrqPanic,
    HardLockup,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    State(State, Target),
    VmxonFault(Target),
    ListTest,
    Trigger(Trigger, u32),
}

/// Parses one line. `EINVAL`: unknown verb, missing, surplus or malformed words; `ERANGE`: a number out of range.
pub(crate) fn parse(line: &str) -> Result<Command> {
    let mut words = line.split_ascii_whitespace().peekable();
    let verb = words.next().ok_or(EINVAL)?;
    let number = match words.peek() {
        Some(word) if !word.starts_with("cpu=") => words.next(),
        _ => None,
    };
    let target = words.next().map(target).transpose()?;
    if words.next().is_some() {
        return Err(EINVAL);
    }
    let all = target.unwrap_or(Target::All);
    let state = match verb {
        "off" => State::Off,
        "vmxon" => State::VmxOn,
        "vmcs-loaded" => State::Loaded(count(number)?),
        "vmcs-launched" => State::Launched,
        "list-add-cut" => State::AddCut(count(number)?),
        "list-del-cut" => State::DeleteCut(count(number)?),
        _ => return other(verb, number, target, all),
    };
    let takes_number = matches!(state, State::Loaded(_) | State::AddCut(_) | State::DeleteCut(_));
    if number.is_some() && !takes_number {
        return Err(EINVAL);
    }
    state.check()?;
    Ok(Command::State(state, all))
}

fn other(verb: &str, number: Option<&str>, target: Option<Target>, all: Target) -> Result<Command> {
    if number.is_some() {
        return Err(EINVAL);
    }
    let trigger = match verb {
        "vmxon-fault" => return Ok(Command::VmxonFault(all)),
        "list-test" if target.is_none() => return Ok(Command::ListTest),
        "panic" => Trigger::Panic,
        "oops" => Trigger::Oops,
        "nmi-panic" => Trigger::NmiPanic,
        "irq-panic" => Trigger::IrqPanic,
        "hardlockup" => Trigger::HardLockup,
        _ => return Err(EINVAL),
    };
    match target {
        None => Ok(Command::Trigger(trigger, 0)),
        Some(Target::One(cpu)) => Ok(Command::Trigger(trigger, cpu)),
        Some(Target::All) => Err(EINVAL),
    }
}

fn count(word: Option<&str>) -> Result<usize> {
    word.ok_or(EINVAL)?.parse().map_err(|_| EINVAL)
}

fn target(word: &str) -> Result<Target> {
    match word.strip_prefix("cpu=").ok_or(EINVAL)? {
        "all" => Ok(Target::All),
        number => Ok(Target::One(number.parse().map_err(|_| EINVAL)?)),
    }
}

#[kunit_tests(crashyard_vmx_command)]
mod tests {
    use super::*;

    #[test]
    fn states_go_to_all_cpus_unless_one_is_named() {
        assert_eq!(parse("vmxon").ok(), Some(Command::State(State::VmxOn, Target::All)));
        assert_eq!(parse("off cpu=all\n").ok(), Some(Command::State(State::Off, Target::All)));
        assert_eq!(parse("vmcs-loaded 3 cpu=1").ok(), Some(Command::State(State::Loaded(3), Target::One(1))));
        assert_eq!(parse(" vmcs-launched  cpu=0 ").ok(), Some(Command::State(State::Launched, Target::One(0))));
    }

    #[test]
    fn cuts_take_the_number_of_writes_done() {
        assert_eq!(parse("list-add-cut 4").ok(), Some(Command::State(State::AddCut(4), Target::All)));
        assert_eq!(parse("list-del-cut 0 cpu=1").ok(), Some(Command::State(State::DeleteCut(0), Target::One(1))));
        assert_eq!(parse("list-add-cut 5").err(), Some(ERANGE));
        assert_eq!(parse("list-del-cut 3").err(), Some(ERANGE));
    }

    #[test]
    fn triggers_act_on_one_cpu() {
        assert_eq!(parse("panic").ok(), Some(Command::Trigger(Trigger::Panic, 0)));
        assert_eq!(parse("nmi-panic cpu=1").ok(), Some(Command::Trigger(Trigger::NmiPanic, 1)));
        assert_eq!(parse("hardlockup cpu=all").err(), Some(EINVAL));
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "",
            "  ",
            "reboot",
            "vmxon 1",
            "vmcs-loaded",
            "vmcs-loaded x",
            "vmcs-loaded cpu=0",
            "vmcs-loaded -1",
            "off cpu=",
            "off cpu=0 cpu=1",
            "off 1 2 3",
            "list-test cpu=0",
            "panic 1",
        ] {
            assert_eq!(parse(line).err(), Some(EINVAL));
        }
        assert_eq!(parse("vmcs-loaded 0").err(), Some(ERANGE));
        assert_eq!(parse("vmcs-loaded 65").err(), Some(ERANGE));
    }
}
