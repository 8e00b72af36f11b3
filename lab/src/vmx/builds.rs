//! The kernels under test: a good one, and three that are broken in one way each.
//!
//! All four are the same lab kernel with the same initramfs but for one module. To the farm they are builds like any
//! other; nothing tells it which one is broken.

use crate::cache::Cache;
use crate::command::script;
use crate::image::{self, Image, Parts};
use crate::kernel::Kernel;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::Path;

/// A kind of build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is wrong with it.
    Good,
    /// `kvm_intel` makes its list heads on first use: the regression of the mailing-list thread.
    SeedBug,
    /// VMX is turned on again right before the jump to the capture kernel.
    LeakedVmxon,
    /// The VMX module's crash callback walks its list and clears nothing.
    SkippedVmclear,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Good, Self::SeedBug, Self::LeakedVmxon, Self::SkippedVmclear];

    /// Its name, on the command line and as the name of its build.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::SeedBug => "seed-bug",
            Self::LeakedVmxon => "leaked-vmxon",
            Self::SkippedVmclear => "skipped-vmclear",
        }
    }
}

/// Builds, or finds in the cache, what the chosen kinds need, and puts their images together. Blocking; the first time
/// it builds a kernel.
pub fn build(cache: &Cache, source: &Path, kinds: &[Kind]) -> anyhow::Result<Vec<(Kind, Image)>> {
    let kernel = script(&source.join("lab/kernel/build"), &[]).context("build the lab kernel")?;
    let agent = image::build_agent(cache, source)?;
    kinds
        .iter()
        .map(|kind| {
            let parts = parts(source, &kernel, *kind)?;
            let image = image::assemble(cache, &agent, parts).with_context(|| format!("build {}", kind.name()))?;
            Ok((*kind, image))
        })
        .collect()
}

/// One of Debian's own cloud kernels, the newest whose release begins with `prefix`, for the states of KVM.
pub fn debian(cache: &Cache, source: &Path, prefix: &str) -> anyhow::Result<Image> {
    let root = script(&source.join("lab/vmcores/kernel"), &[prefix]).context("get Debian's kernel")?;
    let release = root.file_name().context("a kernel has a release")?.to_string_lossy().into_owned();
    let image = root.join(format!("boot/vmlinuz-{release}"));
    let kernel = Kernel { package: format!("linux-image-{release}"), release, image, root };
    let modules = BTreeMap::from([
        ("kvm_intel".to_owned(), image::modules(&kernel, &["kvm_intel"])?),
        // The disk that the dump goes to.
        ("capture".to_owned(), image::modules(&kernel, &["ata_piix", "sd_mod"])?),
    ]);
    let Kernel { package, release, image, .. } = kernel;
    let parts = Parts { package, release, kernel: image, modules, compress: false };
    image::assemble(cache, &image::build_agent(cache, source)?, parts)
}

/// The good KVM modules of the lab kernel, in the order in which they are loaded.
pub fn kvm_intel(source: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let kernel = script(&source.join("lab/kernel/build"), &[]).context("build the lab kernel")?;
    ["irqbypass", "kvm", "kvm-intel"]
        .map(|name| inside(&kernel.join(format!("modules/{name}.ko"))))
        .into_iter()
        .collect()
}

/// A module with its path in the guest.
fn inside(path: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let name = path.file_name().context("a module has a name")?.to_string_lossy().into_owned();
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok((format!("lib/modules/{name}"), bytes))
}

fn parts(source: &Path, kernel: &Path, kind: Kind) -> anyhow::Result<Parts> {
    let module = |control: &[&str]| script(&source.join("vmx-module/build"), control).context("build the VMX module");
    let kvm_intel = match kind {
        Kind::SeedBug => kernel.join("controls/seed-bug/kvm-intel.ko"),
        _ => kernel.join("modules/kvm-intel.ko"),
    };
    let vmx = match kind {
        Kind::SkippedVmclear => module(&["skip-vmclear"])?,
        _ => module(&[])?,
    };
    let mut modules = BTreeMap::from([
        (
            "kvm_intel".to_owned(),
            vec![
                inside(&kernel.join("modules/irqbypass.ko"))?,
                inside(&kernel.join("modules/kvm.ko"))?,
                inside(&kvm_intel)?,
            ],
        ),
        ("lkdtm".to_owned(), vec![inside(&kernel.join("modules/lkdtm.ko"))?]),
        ("crashyard_vmx".to_owned(), vec![inside(&vmx.join("crashyard_vmx.ko"))?]),
    ]);
    if kind == Kind::LeakedVmxon {
        let leak = module(&["vmxon-leak"])?.join("crashyard_vmxon_leak.ko");
        modules.insert("target".to_owned(), vec![inside(&leak)?]);
    }
    let release = std::fs::read_to_string(kernel.join("release")).context("read the lab kernel's release")?;
    Ok(Parts {
        package: format!("lab-kernel-{}", kind.name()),
        release: release.trim().to_owned(),
        kernel: kernel.join("bzImage"),
        modules,
        compress: false,
    })
}
