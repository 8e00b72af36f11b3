// SPDX-License-Identifier: GPL-2.0
/*
 * The smallest use of KVM: one VM, one VCPU, one port write. Only for this folder's tests: the farm has a runner of its own.
 *
 *   kvm-guest        runs it once, then destroys the VM
 *   kvm-guest spin   says "spinning" on stdout and stays in the guest for ever
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { CODE = 0x1000, PORT = 0x10 };

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(int argc, char **argv)
{
	/* STI first: Bochs delivers no interrupt exit to a guest entered with interrupts off. Then OUT, then JMP to itself. */
	static const uint8_t code[] = { 0xfb, 0xe6, PORT, 0xeb, 0xfe };
	int spin = argc > 1 && !strcmp(argv[1], "spin");
	int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
	int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "create VM");
	void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = CODE, .memory_size = 4096, .userspace_addr = (uintptr_t)memory,
	};
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "memory");
	memcpy(memory, code, sizeof code);
	int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "create VCPU");
	struct kvm_run *run = mmap(NULL, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "size"), PROT_READ | PROT_WRITE,
				   MAP_SHARED, vcpu, 0);
	struct kvm_sregs sregs;
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "get sregs");
	sregs.cs.base = sregs.cs.selector = 0;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "set sregs");
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "set regs");
	must(ioctl(vcpu, KVM_RUN, 0), "run");
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != PORT) {
		fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
		return 1;
	}
	puts(spin ? "kvm-guest: spinning" : "kvm-guest: ran");
	fflush(stdout);
	if (spin)
		must(ioctl(vcpu, KVM_RUN, 0), "spin");
	return 0;
}
