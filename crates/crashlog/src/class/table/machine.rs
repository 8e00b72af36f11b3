//! Hardware errors and interrupts.

use super::group;
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

const IRQ: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "bad_irq",
        "note_interrupt",
        "handle_irq",
        "handle_edge_irq",
        "handle_fasteoi",
        "handle_level",
        "common_interrupt",
    ],
};

pub const GROUPS: &[Group] = &[
    group(
        "nobody cared",
        &[],
        &[Class::new(K::BadIrq, "irq {:n}: nobody cared", "irq: nobody cared in {frame}").frames(&IRQ)],
    ),
    group(
        "Hardware Error]: ",
        &[],
        &[
            Class::new(K::MachineCheck, "[Hardware Error]: {}Machine check", "mce: hardware error").traceless(),
            Class::new(K::MachineCheck, "[Hardware Error]: CPU {:n}: Machine Check", "mce: hardware error").traceless(),
            Class::new(K::HardwareError, "[Hardware Error]: event severity: fatal", "hardware error: fatal")
                .traceless(),
            Class::new(K::HardwareError, "[Hardware Error]: Hardware error from APEI", "hardware error: {severity}")
                .also(&["event severity: {severity:w}"])
                .traceless(),
            Class::new(K::HardwareError, "[Hardware Error]: Hardware error from APEI", "hardware error: APEI")
                .traceless(),
        ],
    ),
    group(
        "achine check ",
        &[],
        &[
            Class::new(K::MachineCheck, "Machine check events logged", "mce: hardware error").traceless(),
            Class::new(K::MachineCheck, "^Machine check in kernel mode", "mce: hardware error").traceless(),
        ],
    ),
    group(
        "achine Check Exception",
        &[],
        &[Class::new(K::MachineCheck, "Machine Check Exception", "mce: hardware error").traceless()],
    ),
    group(
        "EDAC MC",
        &[],
        &[Class::new(K::HardwareError, "EDAC MC{:n}: {:n} UE ", "hardware error: uncorrected memory error")
            .traceless()],
    ),
    group(
        "severity=Uncorrect",
        &[],
        &[Class::new(
            K::HardwareError,
            "PCIe Bus Error: severity=Uncorrect{:ed|able} (Fatal)",
            "hardware error: fatal PCIe bus error",
        )
        .traceless()],
    ),
];
