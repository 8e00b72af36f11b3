// SPDX-License-Identifier: GPL-2.0
/*
 * Negative control "vmxon-leak": turns VMX on again just before the jump to the capture kernel, as a crash path that forgot
 * VMXOFF would leave it. The jump clears CR4.VMXE, which faults in VMX operation. From 6.15 on the jump catches that, prints
 * its registers on an early serial console (if there is one) and halts; older kernels end in a triple fault.
 *
 * It exists to prove that the farm sees this. Nothing should ever load it for another purpose.
 */
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <asm/msr.h>
#include <asm/tlbflush.h>
#include <asm/vmx.h>

static u32 *region;

static int leak(struct kprobe *probe, struct pt_regs *regs)
{
	u64 physical = virt_to_phys(region);
	unsigned long cr4;
	u8 failed;

	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | X86_CR4_VMXE) : "memory");
	asm volatile("vmxon %1; setna %0" : "=q"(failed) : "m"(physical) : "cc", "memory");
	pr_emerg("crashyard_vmxon_leak: VMX left on at %s: %s\n", probe->symbol_name, failed ? "VMXON failed" : "done");
	return 0;
}

static struct kprobe probe = { .symbol_name = "machine_kexec", .pre_handler = leak };

static int __init leak_init(void)
{
	int error;
	u64 basic;

	if (!boot_cpu_has(X86_FEATURE_VMX))
		return -ENODEV;
	region = (u32 *)get_zeroed_page(GFP_KERNEL);
	if (!region)
		return -ENOMEM;
	rdmsrq(MSR_IA32_VMX_BASIC, basic);
	*region = vmx_basic_vmcs_revision_id(basic);
	error = register_kprobe(&probe);
	if (error)
		free_page((unsigned long)region);
	return error;
}

static void __exit leak_exit(void)
{
	unregister_kprobe(&probe);
	free_page((unsigned long)region);
}

module_init(leak_init);
module_exit(leak_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Negative control: leaves VMX on across a crash. Destroys the dump, on purpose");
