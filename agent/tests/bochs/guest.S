# The smallest guest that the emulator's driver can boot: a Linux kernel by its boot protocol, of which only the real-mode
# part is ever run. It greets on the serial port, says so when an NMI arrives, and does what it is told there, one letter at a time:
#   m  says the marker of the fake server     o  powers off by ACPI     t  makes a triple fault
	.code16
	.globl start
start:
	.org 0x1f1
	.byte 1			# setup_sects: one behind the boot sector
	.word 0			# root_flags
	.long 1			# syssize, in 16 bytes
	.word 0, 0, 0		# ram_size, vid_mode, root_dev
	.word 0xaa55
	jmp main
	.ascii "HdrS"
	.word 0x0206		# version of the protocol
	.long 0			# realmode_swtch
	.word 0, 0		# start_sys_seg, kernel_version
	.byte 0, 1		# type_of_loader, loadflags: LOADED_HIGH
	.word 0			# setup_move_size
	.long 0x100000		# code32_start
	.long 0, 0, 0		# ramdisk_image, ramdisk_size, bootsect_kludge
	.word 0, 0		# heap_end_ptr, ext_loader_*
	.long 0			# cmd_line_ptr
	.long 0x7fffffff	# initrd_addr_max
	.long 0x1000		# kernel_alignment
	.byte 0, 0		# relocatable_kernel, min_alignment
	.word 0			# xloadflags
	.long 255		# cmdline_size

main:
	cli
	xor %ax, %ax		# vector 2 of the interrupt table; the code's segment begins behind the boot sector
	mov %ax, %es
	movw $(nmi - 0x200), %es:8
	mov %cs, %ax
	mov %ax, %es:10
	mov $0x3fb, %dx		# 115200 baud, 8 bits, no parity
	mov $0x83, %al
	out %al, %dx
	mov $0x3f8, %dx
	mov $1, %al
	out %al, %dx
	inc %dx
	xor %al, %al
	out %al, %dx
	mov $0x3fb, %dx
	mov $3, %al
	out %al, %dx
	mov $greeting, %si
	call say
listen:
	mov $0x3fd, %dx
	in %dx, %al
	test $1, %al		# a byte is there
	jz listen
	mov $0x3f8, %dx
	in %dx, %al
	cmp $'m', %al
	je marker
	cmp $'o', %al
	je off
	cmp $'t', %al
	je triple_fault
	jmp listen

marker:
	mov $trigger, %si
	call say
	jmp listen

off:				# SLP_EN with sleep type 0 in the PM1 control register of the PIIX4, where the BIOS puts it
	mov $0xb004, %dx
	mov $0x2000, %ax
	out %ax, %dx
	jmp listen

triple_fault:			# no interrupt table, not even for the fault of having none
	lidt nothing
	int3

nmi:
	mov $interrupted, %si
	call say
	iret

say:				# the text at SI; the loader has DS point to this image
	lodsb
	test %al, %al
	jz said
	mov %al, %cl
	mov $0x3fd, %dx
wait:
	in %dx, %al
	test $0x20, %al		# room for a byte
	jz wait
	mov %cl, %al
	mov $0x3f8, %dx
	out %al, %dx
	jmp say
said:
	ret

nothing:
	.word 0
	.long 0
greeting:
	.asciz "the guest listens\r\n"
interrupted:
	.asciz "the guest got an NMI\r\n"
trigger:
	.asciz "crashyard: trigger job=J\r\n"
	.org 0x400
	.fill 16, 1, 0		# the protected-mode part, never run
