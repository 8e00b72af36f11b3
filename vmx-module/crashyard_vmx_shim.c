// SPDX-License-Identifier: GPL-2.0
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/kprobes.h>
#include <linux/nmi.h>
#include <linux/panic.h>
#include <linux/sched.h>
#include <linux/workqueue.h>
#include <asm/apic.h>
#include <asm/cpufeatures.h>
#include <asm/desc.h>
#include <asm/nmi.h>
#include <asm/tlbflush.h>
#include <asm/virt.h>

#include "crashyard_vmx_shim.h"

u64 crashyard_vmx_virt_to_phys(unsigned long virt)
{
	return virt_to_phys((void *)virt);
}

bool crashyard_vmx_cpu_online(unsigned int cpu)
{
	return cpu < nr_cpu_ids && cpu_online(cpu);
}

/* Interrupts off, so that it is this CPU's. */
unsigned long crashyard_vmx_cr4_shadow(void)
{
	return cr4_read_shadow();
}

/* In process context, on that CPU, waiting for the answer. No CPU comes or goes meanwhile. */
long crashyard_vmx_run_on(unsigned int cpu, long (*function)(void *), void *argument)
{
	long answer = -ENODEV;

	cpus_read_lock();
	if (crashyard_vmx_cpu_online(cpu))
		answer = work_on_cpu(cpu, function, argument);
	cpus_read_unlock();
	return answer;
}

void crashyard_vmx_reschedule(void)
{
	cond_resched();
}

/* A VM exit leaves the minimum TSS limit; tell the scheduler's code that restores it on demand. */
void crashyard_vmx_after_exit(void)
{
	preempt_disable();
	invalidate_tss_limit();
	preempt_enable();
}

/* The core's VMX reference counting and crash callback, the same door KVM uses. */

int crashyard_vmx_get_ref(void)
{
	return x86_virt_get_ref(X86_FEATURE_VMX);
}

void crashyard_vmx_put_ref(void)
{
	x86_virt_put_ref(X86_FEATURE_VMX);
}

void crashyard_vmx_register_callback(void (*callback)(void))
{
	x86_virt_register_emergency_callback(callback);
}

void crashyard_vmx_unregister_callback(void (*callback)(void))
{
	x86_virt_unregister_emergency_callback(callback);
}

/*
 * The callback runs before the core's VMXOFF, so it cannot see it. A return probe on the core's emergency function can:
 * it runs on every CPU of the shootdown, in the NMI where there is one, and only looks.
 */

static void (*observer)(void);

static int emergency_returned(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	observer();
	return 0;
}
NOKPROBE_SYMBOL(emergency_returned);

static struct kretprobe emergency_probe = {
	.kp.symbol_name = "x86_virt_emergency_disable_virtualization_cpu",
	.handler = emergency_returned,
	.maxactive = NR_CPUS,
};

int crashyard_vmx_observe(void (*seen)(void))
{
	observer = seen;
	return register_kretprobe(&emergency_probe);
}

void crashyard_vmx_unobserve(void)
{
	unregister_kretprobe(&emergency_probe);
}

/* A CPU with VMX on must not leave: its VMCSes could never be cleared. */

static int (*may_go_offline)(unsigned int cpu);

static int going_offline(unsigned int cpu)
{
	return may_go_offline(cpu);
}

int crashyard_vmx_guard_offline(int (*may_go)(unsigned int cpu))
{
	may_go_offline = may_go;
	return cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "crashyard/vmx:online", NULL, going_offline);
}

void crashyard_vmx_unguard_offline(int state)
{
	cpuhp_remove_state_nocalls(state);
}

/* Panics in the two contexts that ordinary code cannot enter. */

static void panic_in_irq(struct irq_work *work)
{
	panic("crashyard: irq-panic on cpu %d\n", raw_smp_processor_id());
}

static struct irq_work panic_work = IRQ_WORK_INIT_HARD(panic_in_irq);

/* On the CPU that called: a self-IPI, served as soon as interrupts are on. */
int crashyard_vmx_panic_in_irq(void)
{
	return irq_work_queue(&panic_work) ? 0 : -EBUSY;
}

static unsigned int nmi_target = UINT_MAX;

static int panic_in_nmi(unsigned int type, struct pt_regs *regs)
{
	if (raw_smp_processor_id() != READ_ONCE(nmi_target))
		return NMI_DONE;
	nmi_panic(regs, "crashyard: nmi-panic");
	return NMI_HANDLED;
}

int crashyard_vmx_panic_in_nmi(unsigned int cpu)
{
	int error;

	/* Registered only now: until the trigger, the machine's NMI handling is untouched. */
	error = register_nmi_handler(NMI_LOCAL, panic_in_nmi, 0, "crashyard_vmx");
	if (error)
		return error;
	WRITE_ONCE(nmi_target, cpu);
	apic->send_IPI(cpu, NMI_VECTOR);
	/* Reached when the NMI goes to another CPU; that CPU stops this one. */
	mdelay(2000);
	WRITE_ONCE(nmi_target, UINT_MAX);
	unregister_nmi_handler(NMI_LOCAL, "crashyard_vmx");
	return -ETIMEDOUT;
}
