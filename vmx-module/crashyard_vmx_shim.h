/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust half cannot reach: static inlines, macros and headers that the kernel's Rust bindings do not include.
 * Nothing here decides anything. The Rust declarations of these functions are in shim.rs and must match.
 */
#ifndef CRASHYARD_VMX_SHIM_H
#define CRASHYARD_VMX_SHIM_H

#include <linux/types.h>

u64 crashyard_vmx_virt_to_phys(unsigned long virt);
bool crashyard_vmx_cpu_online(unsigned int cpu);
unsigned long crashyard_vmx_cr4_shadow(void);
long crashyard_vmx_run_on(unsigned int cpu, long (*function)(void *), void *argument);
void crashyard_vmx_reschedule(void);
void crashyard_vmx_after_exit(void);

int crashyard_vmx_get_ref(void);
void crashyard_vmx_put_ref(void);
void crashyard_vmx_register_callback(void (*callback)(void));
void crashyard_vmx_unregister_callback(void (*callback)(void));

int crashyard_vmx_observe(void (*seen)(void));
void crashyard_vmx_unobserve(void);

int crashyard_vmx_guard_offline(int (*may_go)(unsigned int cpu));
void crashyard_vmx_unguard_offline(int state);

int crashyard_vmx_panic_in_irq(void);
int crashyard_vmx_panic_in_nmi(unsigned int cpu);

#endif
